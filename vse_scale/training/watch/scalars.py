"""The names under which curves show a run's records, the same in all programs that draw them."""

from __future__ import annotations

from vse_scale.retrieval.metrics import DIRECTIONS, percentages
from vse_scale.run.records import EvaluationRecord, StepRecord

# Tags of the objective's figures that are not their names.
_TAGS = {
    "positive_similarity": "similarity/positive",
    "hardest_similarity": "similarity/hardest",
}


def scalars_of_step(record: StepRecord) -> dict[str, float]:
    """Return the figures of a step by tag."""
    return {
        "loss": record.loss,
        "gradient_norm": record.gradient_norm,
        "pairs_per_second": record.pairs_per_second,
        **{_TAGS.get(name, name): value for name, value in record.statistics.items()},
        **{f"learning_rate/{group}": rate for group, rate in record.learning_rate.items()},
        **{f"seconds/{phase}": value for phase, value in record.seconds.items()},
        **{f"checkpoint/{part}": value for part, value in record.checkpoint.items()},
    }


def scalars_of_evaluation(record: EvaluationRecord) -> dict[str, float]:
    """Return the figures of a validation by tag."""
    recalls = {
        f"recall/{way}_{metric.name}": record.recalls[way][metric.name]
        for way in DIRECTIONS
        for metric in percentages()
        if metric.name in record.recalls.get(way, {})
    }
    return {"rsum": record.rsum, **recalls}
