"""Figures of a run: of its validations by metric and direction, and of its training."""

from __future__ import annotations

import math
from array import array

import numpy as np

from vse_scale.retrieval.metrics import DIRECTIONS, METRICS, Direction, Metric
from vse_scale.run.folder import RunRecords
from vse_scale.run.records import EvaluationRecord

RSUM_TERMS = len(DIRECTIONS) * sum(metric.in_rsum for metric in METRICS.values())
HIGHEST_RSUM = 100.0 * RSUM_TERMS


def recorded(record: EvaluationRecord | None, direction: Direction, metric: Metric) -> float | None:
    """Return one figure of a validation; None where the run did not record it."""
    return None if record is None else record.recalls.get(direction.key, {}).get(metric.name)


def recorded_rsum(record: EvaluationRecord | None) -> float | None:
    """Return the RSUM of a validation; None where the run did not record it."""
    return None if record is None or math.isnan(record.rsum) else record.rsum


def text(metric: Metric, value: float | None) -> str:
    """Return a figure with one digit after the point, and a rank without zeros behind it."""
    if value is None:
        return "–"
    return f"{round(value, 1):g}" if metric.unit == "rank" else f"{value:.1f}"


def training_seconds(run: RunRecords) -> float:
    """Return the seconds of all steps."""
    return sum(record.seconds.get("step", 0.0) for record in run.steps)


def pairs_per_second(run: RunRecords) -> float | None:
    """Return the median speed of the steps; None where the run did not record it."""
    # The median: the first steps compile and fill caches, and would drag a mean down.
    speeds = array("d", (record.pairs_per_second for record in run.steps))
    known = np.asarray(speeds)[~np.isnan(speeds)]
    return float(np.median(known)) if len(known) else None
