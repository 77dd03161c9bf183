"""Data: the order of training, mmapped shards, pixels by DALI, captions, and the loader."""
