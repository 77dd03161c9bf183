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
        for name in ("heads", "backbone.1")
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
    start = groups["backbone.1"][0].detach().clone()
    optimizer = build_optimizer(groups, config, torch.device("cpu"))
    frozen = next(g for g in optimizer.param_groups if g["name"] == "backbone.1")
    frozen["frozen"] = True
    for seed in range(3):
        step(optimizer, seed)
    assert torch.equal(groups["backbone.1"][0], start)

    frozen["frozen"] = False
    step(optimizer, 7)
    fresh = two_groups()
    kind = torch.optim.AdamW if algorithm == "adamw" else torch.optim.SGD
    plain = kind([*fresh["heads"], *fresh["backbone.1"]], lr=0.1, weight_decay=0.3)
    step(plain, 7)
    assert torch.equal(groups["backbone.1"][0], fresh["backbone.1"][0])


def test_allocated_state_changes_no_update_and_goes_through_a_state_dict() -> None:
    groups = two_groups(), two_groups()
    optimizers = [build_optimizer(g, OptimConfig(lr=0.1), torch.device("cpu")) for g in groups]
    for parameters in groups[0].values():
        optimizers[0].allocate_state(parameters[0])
    saved = copy.deepcopy(optimizers[0].state_dict())
    assert all(
        state["step"] == 0 and not state["exp_avg"].any() for state in saved["state"].values()
    )
    optimizers[0].load_state_dict(saved)
    for optimizer in optimizers:
        step(optimizer, 0)
    for name in groups[0]:
        assert torch.equal(groups[0][name][0], groups[1][name][0])
