"""High-throughput training of image-text retrieval models."""
