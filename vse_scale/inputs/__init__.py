"""A model's inputs: pixels and tokens, below both the model and the data."""
