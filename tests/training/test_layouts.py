"""One result: a step from identical weights is the same step on any layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import run_ranks

SGD = ("optim.algorithm=sgd", "optim.clip=0", "objective.reduction=mean", "optim.lr=0.1")
# Adam divides a gradient by its own size, noise included, so its steps are kept small.
ADAM = ("optim.lr=1e-5",)
LATE = 12  # in epoch 1: hardest negatives, everything trains


def train_steps(config: Path, out: Path, ranks: int, first: int, count: int, *overrides: str):
    run = f"run.dir={out.with_suffix('')}"
    run_ranks(ranks, [str(config), str(out), str(first), str(count), run, *overrides])
    return torch.load(out)


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative distance of two sets of tensors, taken as one vector each."""
    assert left.keys() == right.keys()
    difference = sum((left[name].double() - right[name].double()).square().sum() for name in left)
    return float((difference / sum(t.double().square().sum() for t in left.values())) ** 0.5)


def assert_same_step(found, expected, tolerance: float = 1e-5) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert found["norm"] == pytest.approx(expected["norm"], rel=tolerance)
    assert distance(expected["gradient"], found["gradient"]) < tolerance
    assert distance(expected["weights"], found["weights"]) < tolerance


@pytest.mark.parametrize("first", [0, LATE])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adamw"])
def test_one_rank_and_two(small_run: Path, tmp_path: Path, first: int, optimizer) -> None:
    alone, together = (
        train_steps(small_run, tmp_path / f"{ranks}.pt", ranks, first, 1, *optimizer)
        for ranks in (1, 2)
    )
    assert len(alone[0]["gradient"]) >= 20
    assert_same_step(together[0], alone[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "stage", "micro_batches", "optimizer"),
    [
        (2, 0, 1, SGD),
        (2, 1, 2, ADAM),
        (2, 2, 4, SGD),
        (2, 3, 1, SGD),
        (2, 3, 2, ADAM),
        (1, 0, 4, ADAM),
        (1, 3, 2, SGD),
        (4, 0, 2, ADAM),
        (4, 1, 1, SGD),
        (4, 2, 1, ADAM),
    ],
)
def test_ten_layouts_and_one_process(
    small_run: Path, tmp_path: Path, ranks: int, stage: int, micro_batches: int, optimizer
) -> None:
    reference = train_steps(small_run, tmp_path / "one.pt", 1, LATE, 1, *optimizer)
    layout = (f"engine.zero_stage={stage}", f"engine.micro_batches={micro_batches}")
    found = train_steps(small_run, tmp_path / "many.pt", ranks, LATE, 1, *layout, *optimizer)
    assert_same_step(found[0], reference[0])


@pytest.mark.slow
def test_twenty_steps_stay_together(small_run: Path, tmp_path: Path) -> None:
    alone, together = (
        train_steps(small_run, tmp_path / f"{ranks}.pt", ranks, LATE, 8, "optim.lr=1e-5")
        for ranks in (1, 2)
    )
    for found, expected in zip(together, alone, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert distance(alone[-1]["weights"], together[-1]["weights"]) < 1e-4
