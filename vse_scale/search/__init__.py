"""Embedding whatever there is, and searching in it."""
