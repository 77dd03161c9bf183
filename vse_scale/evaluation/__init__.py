"""Evaluation: encoding a split and ranking it."""

from vse_scale.evaluation.retrieval import DirectionRecalls, Recalls, recall_at_k

__all__ = ["DirectionRecalls", "Recalls", "recall_at_k"]
