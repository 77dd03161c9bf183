"""Records are the lines that every release has written, and lines of other releases are read."""

from __future__ import annotations

import json
import math

import pytest

from vse_scale.run.records import EvaluationRecord, Results, StepRecord

# Lines as release 0.2 wrote them.
STEP = (
    '{"step": 9, "epoch": 0, "epoch_fraction": 1.0, "objective": "all", "loss": 51.3, '
    '"learning_rate": {"heads": 0.0005, "text": 5e-05, "backbone": 5e-06}, '
    '"gradient_norm": NaN, "applied": false, "pairs_per_second": 64.25, "violating": 0.96875, '
    '"positive_similarity": 0.5, "hardest_similarity": 0.625, "bytes_sent": 0, '
    '"seconds": {"data": 0.01, "forward": 0.2, "communication": 0.0, "step": 1.0}}'
)
EVALUATION = (
    '{"step": 9, "epoch": 0, "split": "val", '
    '"i2t": {"r1": 10.0, "r5": 50.0, "r10": 75.0, "median_rank": 5.0, "mean_rank": 7.5}, '
    '"t2i": {"r1": 12.5, "r5": 40.0, "r10": 80.0, "median_rank": 6.0, "mean_rank": 8.5}, '
    '"rsum": 267.5, "pooling": {"image": [0.75, 0.25], "text": [1.0]}, '
    '"similarities": {"positive": [0, 3], "hardest_negative": [2, 1]}, "seconds": 1.25}'
)
RESULTS = (
    '{"step": 9, "epoch": 0, "split": "val", '
    '"i2t": {"r1": 10.0}, "t2i": {"r1": 12.5}, "rsum": 267.5, "seconds": 1.25, '
    '"steps": 20, "pairs": 640, "train_seconds": 20.5, "final_loss": 3.5, "last_rsum": 260.0}'
)
UNVALIDATED = '{"steps": 20, "pairs": 640, "train_seconds": 20.5, "final_loss": 3.5}'


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (StepRecord, STEP),
        (EvaluationRecord, EVALUATION),
        (Results, RESULTS),
        (Results, UNVALIDATED),
    ],
)
def test_a_line_comes_back_to_the_letter(
    kind: type[StepRecord | EvaluationRecord | Results], line: str
) -> None:
    assert json.dumps(kind.from_json(json.loads(line)).to_json()) == line


def test_figures_are_attributes() -> None:
    step = StepRecord.from_json(json.loads(STEP))
    assert (step.step, step.loss, step.learning_rate["text"]) == (9, 51.3, 5e-05)
    found = EvaluationRecord.from_json(json.loads(EVALUATION))
    assert (found.recalls["t2i"]["r5"], found.pooling["image"]) == (40.0, [0.75, 0.25])
    assert not found.extra
    results = Results.from_json(json.loads(RESULTS))
    assert results.best is not None
    assert (results.best.split, results.best.recalls["i2t"]["r1"]) == ("val", 10.0)
    assert (results.steps, results.last_rsum) == (20, 260.0)


def test_what_another_release_wrote_is_read() -> None:
    newer = json.loads(STEP) | {"temperature": 0.07, "note": "x", "gradient_norm": None}
    record = StepRecord.from_json(newer)
    assert (record.statistics["temperature"], record.statistics["violating"]) == (0.07, 0.96875)
    assert record.extra == {"note": "x"}
    assert math.isnan(record.gradient_norm)
    older = StepRecord.from_json({"step": 3, "loss": 2})
    assert (older.loss, older.statistics, older.applied) == (2.0, {}, True)
    found = EvaluationRecord.from_json({"step": 3, "i2t": {"r20": 1.0}, "note": "x", "fold": 2})
    assert found.recalls == {"i2t": {"r20": 1.0}}
    assert found.extra == {"note": "x", "fold": 2}


def test_the_best_validation_stands_in_for_results() -> None:
    found = [EvaluationRecord(step=s, rsum=rsum) for s, rsum in enumerate((1.0, 3.0, math.nan))]
    assert Results().with_best_of(found).best is found[1]
    assert Results(best=found[0]).with_best_of(found).best is found[0]
    assert Results().with_best_of([]).best is None
