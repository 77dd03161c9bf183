"""Pooling: a variable number of vectors becomes one."""
