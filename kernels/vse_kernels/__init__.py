"""Triton kernels for image-text retrieval: sort-and-weight pooling and hard-negative mining."""
