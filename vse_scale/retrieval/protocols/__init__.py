"""The protocols under which retrieval results are published."""
