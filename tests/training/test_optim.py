"""Freezing: a frozen group does not move by a bit, and later trains as if it had just begun."""

from __future__ import annotations

import copy

import pytest
import torch

from vse_scale.config import OptimConfig
from vse_scale.training.optim import build_optimizer


def two_groups() -> dict[str, list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: [torch.nn.Parameter(torch.randn(3, 2, generator=generator))]
        for name in ("heads", "backbone")
    }


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_a_frozen_group_stands_still_and_then_equals_a_fresh_one(algorithm: str) -> None:
    config = OptimConfig(algorithm=algorithm, lr=0.1, weight_decay=0.3)
    groups = two_groups()
    start = groups["backbone"][0].detach().clone()
    optimizer = build_optimizer(groups, config, torch.device("cpu"))
    frozen = next(g for g in optimizer.param_groups if g["name"] == "backbone")
    frozen["frozen"] = True
    for seed in range(3):
        step(optimizer, seed)
    assert torch.equal(groups["backbone"][0], start)

    frozen["frozen"] = False
    step(optimizer, 7)
    fresh = two_groups()
    kind = torch.optim.AdamW if algorithm == "adamw" else torch.optim.SGD
    plain = kind([*fresh["heads"], *fresh["backbone"]], lr=0.1, weight_decay=0.3)
    step(plain, 7)
    assert torch.equal(groups["backbone"][0], fresh["backbone"][0])


def test_a_frozen_group_has_state_that_a_checkpoint_can_hold() -> None:
    optimizer = build_optimizer(two_groups(), OptimConfig(), torch.device("cpu"))
    for group in optimizer.param_groups:
        group["frozen"] = group["name"] == "backbone"
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["step"] == 1
    assert saved["state"][1]["step"] == 0
    assert not saved["state"][1]["exp_avg"].any()
    optimizer.load_state_dict(saved)
