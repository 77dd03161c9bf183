"""Operations on paper, against published and hand-counted numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vse_scale.config import Config
from vse_scale.planning.flops import count_flops


def test_a_resnet50_takes_what_is_published(small_run: Path) -> None:
    """4.09 billion multiplications and additions forward (torchvision), twice that backward.

    Without the classifier, and with this model's projection and small text tower.
    """
    given = ["model.image.backbone=resnet50", "model.image.size=224", "data.captions_per_image=1"]
    found = count_flops(Config.load(small_run, given), tokens=12)
    first = 2 * 112**2 * 64 * 3 * 49  # no gradient flows into pixels
    assert found == pytest.approx(3 * 2 * 4.09e9 - first, rel=0.02)


def test_captions_share_an_image_and_checkpointing_adds_nothing(small_run: Path) -> None:
    def of(*overrides: str) -> float:
        return count_flops(Config.load(small_run, list(overrides)), tokens=12)

    one, two, four = (of(f"data.captions_per_image={k}") for k in (1, 2, 4))
    # A caption's own, and an image's over those that it serves.
    assert one - two == pytest.approx(2 * (two - four), rel=0.1)
    assert of("engine.activation_checkpointing=true") == two
