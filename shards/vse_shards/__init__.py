"""Image-text datasets as checked, deterministic WebDataset shards."""
