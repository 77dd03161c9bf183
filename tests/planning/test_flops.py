"""Operations on paper, against published and hand-counted numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vse_scale.config import Config
from vse_scale.inputs import pixels as pixels_module
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.planning.activations import count_activations
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


def test_pictures_are_normalised_after_a_plan_as_before(small_run: Path) -> None:
    """A plan is computed without values, and keeps none of them for those who come after."""
    spec = ImageSpec.preset("imagenet", 32)  # the configuration's
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values) for values in (spec.mean, spec.std))
    expected = ((pixels.float() * spec.scale - mean) / std).permute(0, 3, 1, 2)
    pixels_module._statistics.cache_clear()
    count_flops(Config.load(small_run), tokens=12)
    assert pixels_module._statistics.cache_info().currsize == 1
    torch.testing.assert_close(spec.normalise(pixels), expected)
    assert pixels_module._statistics.cache_info().currsize == 1  # that which the plan made


@pytest.mark.parametrize(
    "frozen",
    [["model.image.frozen=true"], ["model.image.frozen=true", "model.text.frozen=true"]],
)
def test_weights_that_do_not_train_can_be_planned(small_run: Path, frozen: list[str]) -> None:
    whole, found = (
        count_activations(Config.load(small_run, given), 16, tokens=12, bucket=0)
        for given in ([], frozen)
    )
    assert found.alone <= whole.alone
    assert found.with_gradients < whole.with_gradients
