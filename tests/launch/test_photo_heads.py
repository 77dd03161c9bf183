"""Heads over frozen states: their plain losses and recalls are the library's."""

from __future__ import annotations

import math

import pytest
import torch
from photo_heads import Heads, Settings, States, loss_of, optimizer_of, recalls, spread
from torch.nn import functional as F

from vse_scale.objective import make_objective


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
def test_losses(kind: str, name: str, settings: dict) -> None:
    draws = torch.Generator().manual_seed(3)
    images, captions = (
        F.normalize(torch.randn(12, 8, generator=draws, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    scale = torch.tensor(20.0, dtype=torch.float64).log()
    found = loss_of(kind, images @ captions.T, torch.arange(12), scale, torch.tensor(-10.0))
    expected = make_objective(name, **settings).loss(images, captions)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_recalls_of_a_known_ranking() -> None:
    """Three images of two captions; the last image's captions lie nearer to the first image."""
    eye = torch.eye(3)
    tokens = torch.stack([eye[0], eye[0], eye[1], eye[1], eye[0], eye[0]])[:, None]
    image_of = torch.tensor([0, 0, 1, 1, 2, 2])
    ones = torch.ones(6, dtype=torch.int64)
    states = States(eye[:, None], tokens, ones, image_of, tokens[:, 0])
    heads = Heads("mean", "mean", (3, 3), 3)
    for linear in heads.linears:
        torch.nn.init.eye_(linear.weight)
    r1_images, r1_captions, rsum = recalls(heads, states)
    # Image 0 ties with two captions of image 2; a tie counts against it. Captions of image 2 miss.
    assert r1_images == pytest.approx(100 / 3)
    assert r1_captions == pytest.approx(200 / 3)
    assert 0 < rsum < 600


def states_of(cells: int, tokens: list[int], width: int = 4) -> States:
    draws = torch.Generator().manual_seed(5)
    lengths = torch.tensor(tokens)
    inside = torch.arange(max(tokens)) < lengths[:, None]
    captions = torch.randn(len(tokens), max(tokens), width, generator=draws) * inside[..., None]
    means = captions.sum(1) / lengths[:, None]
    images = torch.randn(len(tokens), cells, width, generator=draws)
    return States(images, captions, lengths, torch.arange(len(tokens)), means)


@torch.no_grad()
def test_spread_of_the_weights_of_gpo() -> None:
    """With a Linear of zeros the weights are even; where one place wins, they are a maximum's."""
    heads = Heads("gpo", "gpo", (4, 4), 4)
    for pool in heads.pools:
        pool.linear.weight.zero_()
    states = states_of(9, [5, 7, 6])
    assert spread(heads, states) == [
        "image GPO: 9.0 of 9 states; the largest weight is 0.111, of place 1",
        "text GPO: 6.0 of 6 states; the largest weight is 0.167, of place 1",
    ]
    heads.pools[0].linear.weight.normal_(std=1e4)
    weights = heads.pools[0].weight_table(torch.tensor([9]), 9)[0]
    entropy = -sum(w * math.log(w) for w in weights.tolist() if w)
    assert spread(heads, states)[0].startswith(f"image GPO: {math.exp(entropy):.1f} of 9 states")
    assert spread(Heads("mean", "max", (4, 4), 4), states) == []


def test_poolings_have_a_rate_of_their_own() -> None:
    heads = Heads("gpo", "mean", (4, 4), 4)
    other = torch.nn.Parameter(torch.zeros(()))
    groups = optimizer_of(heads, [other], Settings(rate=0.01, pool_rate=10.0)).param_groups
    assert [group["most"] for group in groups] == pytest.approx([0.01, 0.1])
    found = {id(one) for group in groups for one in group["params"]}
    assert found == {id(one) for one in [*heads.parameters(), other]}
    assert len(optimizer_of(Heads("mean", "max", (4, 4), 4), [], Settings()).param_groups) == 1
