"""The hinge loss and its negatives over the global batch."""
