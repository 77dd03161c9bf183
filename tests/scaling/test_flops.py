"""Operations on paper, against published and hand-counted numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vse_scale.config import Config
from vse_scale.scaling.flops import count_flops


def test_a_resnet50_takes_what_is_published(small_run: Path) -> None:
    """4.09 billion multiplications and additions forward (torchvision), twice that backward.

    Without the classifier, and with this model's projection and small text tower.
    """
    given = ["model.image.backbone=resnet50", "model.image.size=224", "data.captions_per_image=1"]
    found = count_flops(Config.load(small_run, given), 2, tokens=12)
    first = 2 * 112**2 * 64 * 3 * 49  # no gradient flows into pixels
    assert found / 2 == pytest.approx(3 * 2 * 4.09e9 - first, rel=0.02)


def test_operations_grow_with_the_pairs_and_not_with_checkpointing(small_run: Path) -> None:
    config = Config.load(small_run)
    few, many = (count_flops(config, pairs, tokens=12) for pairs in (64, 128))
    assert many == pytest.approx(2 * few, rel=0.05)
    sparing = Config.load(small_run, ["engine.activation_checkpointing=true"])
    assert count_flops(sparing, 64, tokens=12) == few
