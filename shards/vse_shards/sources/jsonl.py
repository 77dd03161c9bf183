"""``jsonl``: one JSON object per line; see `tabular`."""

from vse_shards.sources.tabular.source import JsonlSource

__all__ = ["JsonlSource"]
