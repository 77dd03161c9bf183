"""Image-text datasets as checked, deterministic WebDataset shards."""

__version__ = "0.2.0"  # of vse-scale too
