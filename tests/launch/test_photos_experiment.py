"""The experiment on photos: its plain losses and recalls are the library's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from vse_scale.objective import make_objective

SCRIPT = Path(__file__).parents[2] / "launch" / "photos_experiment.py"


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photos_experiment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses ask there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("infonce", "infonce", {"temperature": 0.05}),
        ("sigmoid", "sigmoid", {"scale": 20.0, "bias": -10.0}),
        (
            "hinge+infonce",
            "hinge+infonce",
            {
                "hinge": {"margin": 0.2, "warmup_epochs": 0, "ramp": False},
                "infonce": {"temperature": 0.05},
            },
        ),
        ("hardest", "hinge", {"margin": 0.2, "warmup_epochs": 0, "ramp": False}),
    ],
)
def test_losses(experiment: ModuleType, kind: str, name: str, settings: dict) -> None:
    draws = torch.Generator().manual_seed(3)
    images, captions = (
        F.normalize(torch.randn(12, 8, generator=draws, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    scale = torch.tensor(20.0, dtype=torch.float64).log()
    found = experiment.loss_of(
        kind, images @ captions.T, torch.arange(12), scale, torch.tensor(-10.0)
    )
    expected = make_objective(name, **settings).loss(images, captions)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_recalls_of_a_known_ranking(experiment: ModuleType) -> None:
    """Three images of two captions; the last image's captions lie nearer to the first image."""
    eye = torch.eye(3)
    tokens = torch.stack([eye[0], eye[0], eye[1], eye[1], eye[0], eye[0]])[:, None]
    image_of = torch.tensor([0, 0, 1, 1, 2, 2])
    ones = torch.ones(6, dtype=torch.int64)
    states = experiment.States(eye[:, None], tokens, ones, image_of, tokens[:, 0])
    heads = experiment.Heads("mean", "mean", (3, 3), 3)
    for linear in heads.linears:
        torch.nn.init.eye_(linear.weight)
    r1_images, r1_captions, rsum = experiment.recalls(heads, states)
    # Image 0 ties with two captions of image 2; a tie counts against it. Captions of image 2 miss.
    assert r1_images == pytest.approx(100 / 3)
    assert r1_captions == pytest.approx(200 / 3)
    assert 0 < rsum < 600
