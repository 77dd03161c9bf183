"""Host memory that a plan counts for checkpoints, against what a snapshot copies."""

from __future__ import annotations

import dataclasses

import pytest

from vse_scale.planning.memory import checkpoint_bytes
from vse_scale.planning.traffic import STAGES, Workload


def workload(**more: object) -> Workload:
    names = [field.name for field in dataclasses.fields(Workload)]
    values = {
        **dict.fromkeys(names, 1),
        "parameters": 1000,
        "trained": 1000,
        "moments": 2,
        "averaged": False,
        **more,
    }
    return Workload(**values)


@pytest.mark.parametrize(
    ("stage", "ranks", "copied", "gathered"),
    [  # 1,000 weights and 2,000 moments of 4 bytes
        (0, 1, 12_000, 0),
        (0, 4, 12_000, 0),
        (1, 1, 12_000, 0),
        (2, 4, 4_000 + 2_000, 8_000),
        (3, 4, 3_000, 12_000),
    ],
)
def test_copied_and_gathered(stage: int, ranks: int, copied: float, gathered: float) -> None:
    found = checkpoint_bytes(workload(), stage, ranks)
    assert found == {"copied": copied, "gathered": gathered}
    large = checkpoint_bytes(workload(gather_gb=11e-6), stage, ranks)
    assert large == {"copied": copied, "gathered": 0}
    averaged = checkpoint_bytes(workload(averaged=True), stage, ranks)
    assert averaged["copied"] == copied + 4_000


def test_every_stage_is_counted() -> None:
    assert {stage: checkpoint_bytes(workload(), stage, 2)["copied"] for stage in STAGES} == {
        0: 12_000, 1: 8_000, 2: 8_000, 3: 6_000,
    }  # fmt: skip
