"""Observers of a run: Prometheus, TensorBoard and the watch for collapse."""
