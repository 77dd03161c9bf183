"""Which negatives are mined, and how precisely, against scores in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vse_scale.errors import ConfigError
from vse_scale.objective import global_hinge_loss, make_objective, mining

IMAGES, PER_IMAGE, DIM = 256, 5, 64
# Of a dot product of unit rows: of its float32 sum, and of rows rounded to 8 bits of mantissa.
ROUNDING = {"exact": 2 * DIM * 2.0**-24, "fast": 2 * 2.0**-8}


def batch_of(images: int = IMAGES, per_image: int = PER_IMAGE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    rows, captions = (
        F.normalize(torch.randn(count, DIM, generator=generator), dim=1)
        for count in (images, images * per_image)
    )
    return rows, captions, torch.arange(images).repeat_interleave(per_image)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The operands of every mining, with what it found."""
    made: list[tuple[Any, ...]] = []
    plain = mining.hardest_negatives

    def mine(queries: Tensor, candidates: Tensor, *rest: Any, **options: Any) -> Any:
        found = plain(queries, candidates, *rest, **options)
        made.append((queries, candidates, found))
        return found

    monkeypatch.setattr(mining, "hardest_negatives", mine)
    return made


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_what_is_chosen_is_the_hardest_but_for_rounding(
    calls: list[tuple[Any, ...]], precision: mining.Precision
) -> None:
    """Only near-ties may be decided otherwise, and bfloat16 decides some of them otherwise."""
    images, captions, ids = batch_of()
    valid = torch.ones_like(ids, dtype=torch.bool)
    global_hinge_loss(images, captions, ids=ids, valid=valid, mining_precision=precision)
    ((_, _, found),) = calls
    scores = images.double() @ captions.double().T
    scores[torch.arange(IMAGES)[:, None] == ids] = -torch.inf
    others = 0
    for by_anchor, chosen in ((scores, found.row_index), (scores.T, found.column_index)):
        best, second = by_anchor.topk(2, dim=1).values.T
        lost = best - by_anchor.gather(1, chosen[:, None])[:, 0]
        near = best - second <= ROUNDING[precision]
        assert (lost <= ROUNDING[precision]).all()
        assert not (lost > 0)[~near].any()
        others += int((lost > 0).sum())
    assert (others > 0) == (precision == "fast")


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_loss_of_what_is_chosen_is_exact(precision: mining.Precision) -> None:
    """One caption is far the hardest for all images, so that both precisions choose it."""
    images, captions, ids = batch_of(12, 2)
    captions[3] = F.normalize(images.sum(0) + 10 * images[1], dim=0)
    valid = torch.ones_like(ids, dtype=torch.bool)
    sides = [side.double().requires_grad_() for side in (images, captions)]
    scores = sides[0] @ sides[1].T
    apart = torch.arange(12)[:, None] != ids
    positive = scores[ids, torch.arange(24)]
    by_image = scores.masked_fill(~apart, -9).amax(1)[ids]
    by_caption = scores.masked_fill(~apart, -9).amax(0)
    expected = sum((0.2 + side - positive).clamp(min=0).sum() for side in (by_image, by_caption))
    found = global_hinge_loss(
        *(side.detach().float().requires_grad_() for side in sides),
        ids=ids, valid=valid, mining_precision=precision,
    )  # fmt: skip
    if precision == "exact":
        assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    else:
        # Another choice within the rounding of bfloat16 loses at most as much a pair.
        assert 0 <= float((expected - found.loss.double()).detach()) <= 48 * ROUNDING["fast"]


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, [(IMAGES, IMAGES * PER_IMAGE)]),
        ({"mode": "all"}, [(IMAGES, IMAGES * PER_IMAGE)]),
        (
            {"mode": "semi-hard"},
            [(IMAGES, IMAGES * PER_IMAGE), (IMAGES * PER_IMAGE, IMAGES)],
        ),
    ],
)
def test_an_image_is_mined_once_for_all_its_captions(
    calls: list[tuple[Any, ...]], options: dict[str, Any], shapes: list[tuple[int, int]]
) -> None:
    images, captions, ids = batch_of()
    valid = torch.ones_like(ids, dtype=torch.bool)
    global_hinge_loss(images, captions, ids=ids, valid=valid, **options)
    assert [(len(queries), len(candidates)) for queries, candidates, _ in calls] == shapes


def test_an_image_with_padding_keeps_its_other_captions() -> None:
    """Captions 1 and 2 are padding: image 0 is still mined, and image 1 is by its other one."""
    images, captions, ids = batch_of(4, 2)
    valid = torch.tensor([1, 0, 0, 1, 1, 1, 1, 1]).bool()
    whole = global_hinge_loss(images, captions, ids=ids, valid=valid, margin=2.0)
    kept = torch.tensor([0, 3, 4, 5, 6, 7])
    rows = images[ids[kept]], captions[kept]
    alone = global_hinge_loss(*rows, ids=ids[kept], valid=valid[kept], margin=2.0)
    assert float(whole.loss) == pytest.approx(float(alone.loss), rel=1e-6)
    assert whole.statistics == pytest.approx(alone.statistics)


@pytest.mark.parametrize("other", [{"mode": "semi-hard"}, {"ignore_above": 0.1}])
def test_fast_mining_is_refused_where_negatives_are_compared_with_the_pair(
    other: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"set mining_precision: exact") as refusal:
        make_objective("hinge", mining_precision="fast", **other)
    assert next(iter(other)) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    make_objective("hinge", mining_precision="exact", **other)
    make_objective("hinge", mining_precision="fast")


def test_the_setting_reaches_the_mining(calls: list[tuple[Any, ...]]) -> None:
    images, captions, ids = batch_of(6, 2)
    for precision, dtype in (("exact", torch.float32), ("fast", torch.bfloat16)):
        make_objective("hinge", mining_precision=precision).loss(images, captions, ids)
        assert calls.pop()[0].dtype == dtype
