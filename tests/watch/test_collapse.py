"""Collapse: in one spot the ratio is 1 by the loss's definition, and a lasting one is reported."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
import torch

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.objective.hinge import hinge_loss
from vse_scale.objective.registry import objective_of
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import StepRecord
from vse_scale.training.watch.collapse import Collapse, CollapseWatch

IN_ONE_SPOT = {"positive_similarity": 0.999, "hardest_similarity": 0.998}


def config(small_run: Path, *overrides: str) -> Config:
    return Config.load(small_run, list(overrides))


@pytest.mark.parametrize(
    ("mode", "reduction", "margin"),
    [*itertools.product(("hardest", "all"), ("sum", "mean"), (0.2, 0.05))],
)
def test_one_spot_has_ratio_one(small_run: Path, mode: str, reduction: str, margin: float) -> None:
    settings = config(small_run, f"objective.reduction={reduction}", f"objective.margin={margin}")
    batch, k = settings.data.global_batch, settings.data.captions_per_image
    rows = torch.nn.functional.normalize(torch.ones(batch, 8, dtype=torch.float64), dim=1)
    ids = torch.arange(batch) // k
    loss = hinge_loss(rows, rows, margin=margin, mode=mode, reduction=reduction, ids=ids)
    record = StepRecord(step=0, objective=mode, loss=float(loss))
    assert Collapse(settings).ratio(record) == pytest.approx(1.0, rel=1e-9)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING, logger="vse_scale")
    return caplog


def watch_of(small_run: Path) -> CollapseWatch:
    folder = RunFolder(small_run.parent)
    return CollapseWatch(config(small_run), folder, next_step=0, total_steps=9)


def feed(watch: CollapseWatch, steps: int, loss: float, **similarities: float) -> None:
    for step in range(steps):
        record = StepRecord(step=step, objective="hardest", loss=loss, statistics=similarities)
        watch.step(record)


def test_a_lasting_collapse_is_said_once(
    small_run: Path, warnings: pytest.LogCaptureFixture
) -> None:
    watch = watch_of(small_run)
    collapsed = 2 * 16 * 0.2
    feed(watch, 99, collapsed, **IN_ONE_SPOT)
    assert not warnings.messages
    feed(watch, 1, collapsed, **IN_ONE_SPOT)
    assert "the embeddings have collapsed" in warnings.messages[0]
    feed(watch, 200, collapsed, **IN_ONE_SPOT)
    assert len(warnings.messages) == 1
    # Out of it, and in again.
    feed(watch, 1, 0.3 * collapsed, positive_similarity=0.6, hardest_similarity=0.4)
    feed(watch, 100, collapsed, **IN_ONE_SPOT)
    assert len(warnings.messages) == 2


def test_a_point_for_each_side_is_a_collapse(
    small_run: Path, warnings: pytest.LogCaptureFixture
) -> None:
    # fartashf/vsepp#27: images in one point and captions in another, 0.4 apart.
    feed(watch_of(small_run), 100, 6.41, positive_similarity=0.4, hardest_similarity=0.401)
    assert "pairs (similarity 0.400) have scored as their hardest" in warnings.messages[0]
    assert "a longer objective.warmup_epochs" in warnings.messages[0]


def test_the_loss_of_a_point_for_each_side_is_the_same(small_run: Path) -> None:
    settings = config(small_run)
    batch, k = settings.data.global_batch, settings.data.captions_per_image
    ids = torch.arange(batch) // k
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.3]]), dim=1).expand(batch, -1)
    captions = torch.nn.functional.normalize(torch.tensor([[0.1, 1.0]]), dim=1).expand(batch, -1)
    loss = hinge_loss(images, captions, margin=settings.objective.margin, mode="hardest", ids=ids)
    record = StepRecord(step=0, objective="hardest", loss=float(loss))
    assert Collapse(settings).ratio(record) == pytest.approx(1.0, rel=1e-6)


KINDS = {
    "hinge": ("objective.reduction=mean", "objective.ignore_above=0.1"),
    "infonce": ("objective.label_smoothing=0.1",),
    "sigmoid": ("objective.bias=-3",),
    "hinge+infonce": ("objective.hinge_weight=0.5", "objective.hinge.warmup_epochs=0"),
}


@pytest.mark.parametrize("apart", [False, True], ids=["one point", "a point for each side"])
@pytest.mark.parametrize("sizes", ["[]", "[8,24]"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_tells_its_own_collapse(
    small_run: Path, warnings: pytest.LogCaptureFixture, kind: str, sizes: str, apart: bool
) -> None:
    given = (f"objective.kind={kind}", f"objective.matryoshka={sizes}", *KINDS[kind])
    settings = config(small_run, *given, *([] if kind == "hinge" else ["objective.ramp=null"]))
    objective = objective_of(settings.objective)
    batch = settings.data.global_batch
    assert settings.data.captions_per_image == 2
    images = torch.nn.functional.normalize(torch.ones(24), dim=0)
    # Equal at every size of the embeddings, 0.6 apart.
    turned = torch.tensor([1.0, 0.25]).repeat(12)
    captions = torch.nn.functional.normalize(turned, dim=0) if apart else images
    noise = torch.Generator().manual_seed(0)
    watch = CollapseWatch(settings, RunFolder(small_run.parent), next_step=0, total_steps=9)
    for spread, said in ((0.3, 0), (1e-4, 1)):
        for step in range(100):
            rows = (
                side + spread * torch.randn(count, 24, generator=noise)
                for side, count in ((images, batch // 2), (captions, batch))
            )
            found = objective.compute(
                *(torch.nn.functional.normalize(side, dim=1) for side in rows),
                ids=torch.arange(batch) // 2, valid=torch.ones(batch, dtype=torch.bool),
                phase=objective.final_phase,
            )  # fmt: skip
            watch.step(
                StepRecord(
                    step=step, objective=objective.final_phase, loss=float(found.loss.detach()),
                    statistics=found.statistics,
                )
            )  # fmt: skip
        assert len(warnings.messages) == said, warnings.messages


@pytest.mark.parametrize(
    ("loss", "positive", "hardest", "violating"),
    [
        # Early: the hardest negative scores like the pair, and the embeddings are spread.
        (6.4, 0.4, 0.4, 0.97),
        (6.4, 0.4, 0.45, 1.0),
        (3.0, 0.999, 0.998, 1.0),
        (float("nan"), 0.999, 0.998, 1.0),
        (6.4, float("nan"), 0.999, 1.0),
    ],
)
def test_what_is_no_collapse_is_not_called_one(
    small_run: Path,
    warnings: pytest.LogCaptureFixture,
    loss: float,
    positive: float,
    hardest: float,
    violating: float,
) -> None:
    similarities = {"positive_similarity": positive, "hardest_similarity": hardest}
    feed(watch_of(small_run), 300, loss, **similarities, violating=violating)
    assert not warnings.messages
