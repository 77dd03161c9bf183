"""Evaluation: encoding a split and ranking it."""
