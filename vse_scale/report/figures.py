"""Figures of validations, by the tables of metrics and directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vse_scale.retrieval.metrics import DIRECTIONS, METRICS, Direction, Metric

RSUM_TERMS = len(DIRECTIONS) * sum(metric.in_rsum for metric in METRICS.values())
HIGHEST_RSUM = 100.0 * RSUM_TERMS


def recorded(record: Mapping[str, Any], direction: Direction, metric: Metric) -> float | None:
    """Return one figure of a validation; None where the run did not record it."""
    value = (record.get(direction.key) or {}).get(metric.name)
    return None if value is None else float(value)


def text(metric: Metric, value: float | None) -> str:
    """Return a figure with one digit after the point, and a rank without zeros behind it."""
    if value is None:
        return "–"
    return f"{round(value, 1):g}" if metric.unit == "rank" else f"{value:.1f}"
