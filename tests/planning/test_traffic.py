"""What the plan says of traffic."""

from __future__ import annotations

from typing import Any

import pytest

from vse_scale.objective import make_objective
from vse_scale.planning.traffic import STAGES, Workload, step_bytes


def work(**changes: Any) -> Workload:
    given = {
        "parameters": 1000, "trained": 1000, "moments": 2,
        "autocast_parameters": 0, "gathered_parameters": 0,
        "global_batch": 64, "captions_per_image": 1, "embed_dim": 8,
        "objective": make_objective("hinge"),
    }  # fmt: skip
    return Workload(**{**given, **changes})


def test_one_rank_sends_nothing() -> None:
    for stage in STAGES:
        assert sum(step_bytes(work(), stage, ranks=1).values()) == 0


def test_traffic_of_gradients_and_weights() -> None:
    """The published counts: 2 P of an all-reduce, 3 P of stage 3 with one gathering each way."""
    many = 10**6
    whole = 4 * 1000
    for stage, gradients, weights in ((0, 2, 0), (1, 2, 1), (2, 2, 1), (3, 1, 1)):
        sent = step_bytes(work(), stage, ranks=many)
        assert sent["gradients"] == pytest.approx(gradients * whole, rel=1e-5)
        assert sent["weights"] == pytest.approx(weights * whole, rel=1e-5)
