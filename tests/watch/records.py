"""Records of a step and of a validation, as the training loop makes them."""

from __future__ import annotations

from vse_scale.run.records import EvaluationRecord, StepRecord

RECORD = StepRecord(
    step=7,
    epoch=0,
    objective="hardest",
    loss=0.8,
    learning_rate={"heads": 1e-3, "text": 1e-4, "backbone": 1e-5},
    gradient_norm=3.0,
    applied=True,
    pairs_per_second=40.0,
    statistics={"violating": 0.75, "positive_similarity": 0.5, "hardest_similarity": 0.25},
    bytes_sent=4096,
    seconds={
        "data": 0.25, "forward": 0.125, "objective": -1e-9, "backward": 0.5, "optimizer": 0.0625,
        "communication": 0.03125, "step": 0.96875,
    },
    staging={"fetched_shards": 3, "found_shards": 2, "fetched_bytes": 5000, "wait_seconds": 0.75},
)  # fmt: skip

_RECALLS = {"r1": 25.0, "r5": 50.0, "r10": 75.0}
EVALUATION = EvaluationRecord(
    step=7, split="val", recalls={"i2t": _RECALLS, "t2i": _RECALLS}, rsum=300.0, seconds=1.5
)
