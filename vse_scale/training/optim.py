"""Optimizers whose parameter groups can be frozen and thawed under every ZeRO stage.

Parameters that do not require gradients when DeepSpeed builds its engine never train later, and
toggling ``requires_grad`` lets Adam's step count and weight decay go on. So a frozen group stays in
the optimizer, which passes over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vse_scale.config import OptimConfig
from vse_scale.training.schedule import StepPlan


class _SkipsFrozenGroups(torch.optim.Optimizer):
    """Passes over every group whose ``frozen`` is set: no update, no decay, no step count."""

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["frozen"]:
                continue
            for parameter in group["params"]:
                parameter.grad = None
                # Zero state, so that a checkpoint taken while frozen holds what a loader expects.
                if not self.state[parameter] and parameter.numel():
                    self.state[parameter].update(self._initial_state(parameter))
        return super().step(closure)


class StagedAdamW(_SkipsFrozenGroups, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, 2019) with groups that can be frozen."""

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        fused = bool(self.defaults["fused"])
        step = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        return {
            "step": step,
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


class StagedSGD(_SkipsFrozenGroups, torch.optim.SGD):
    """Plain gradient descent with groups that can be frozen."""


def build_optimizer(
    groups: dict[str, list[Parameter]], config: OptimConfig, device: torch.device
) -> StagedAdamW | StagedSGD:
    """Return the optimizer over named ``groups``; ``apply_plan`` sets rates and freezing.

    Args:
        groups: Parameters per group name. Empty groups are left out.
        config: Algorithm, learning rate and weight decay.
        device: Where the parameters live; AdamW is fused on CUDA.
    """
    listed: list[dict[str, Any]] = [
        {"params": parameters, "name": name, "frozen": False}
        for name, parameters in groups.items()
        if parameters
    ]
    if config.algorithm == "sgd":
        return StagedSGD(listed, lr=config.lr, weight_decay=config.weight_decay)
    return StagedAdamW(
        listed, lr=config.lr, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )


def apply_plan(optimizer: torch.optim.Optimizer, plan: StepPlan) -> None:
    """Set each named group's learning rate and freezing to what ``plan`` says."""
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rates[group["name"]]
        group["frozen"] = group["name"] in plan.frozen
