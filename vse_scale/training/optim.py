"""Optimizers whose parameter groups can be frozen and unfrozen under every ZeRO stage.

Parameters that do not require gradients when DeepSpeed builds its engine never train later, and
toggling ``requires_grad`` lets Adam's step count and weight decay go on. So a frozen group stays in
the optimizer, which passes over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vse_scale.config import OptimConfig
from vse_scale.training.schedule import StepPlan


class _SkipsFrozenGroups(torch.optim.Optimizer):
    """Passes over every group whose ``frozen`` is set: no update, no decay, no step count.

    Attributes:
        moments: names of the optimizer state that has a parameter's shape.
    """

    moments: tuple[str, ...] = ()

    def allocate_state(self, parameter: Tensor) -> None:
        """Give ``parameter`` the state that its first update would start from."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            if group["frozen"]:
                for parameter in group["params"]:
                    parameter.grad = None
        return super().step(closure)


class StagedAdamW(_SkipsFrozenGroups, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, 2019) with groups that can be frozen."""

    moments = ("exp_avg", "exp_avg_sq")

    def allocate_state(self, parameter: Tensor) -> None:
        """Give ``parameter`` its step count of 0 and moments of 0."""
        fused = bool(self.defaults["fused"])
        self.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if fused else "cpu"),
            **{name: torch.zeros_like(parameter.detach()) for name in self.moments},
        }


class StagedSGD(_SkipsFrozenGroups, torch.optim.SGD):
    """Plain gradient descent with groups that can be frozen."""


_KINDS: dict[str, type[StagedAdamW] | type[StagedSGD]] = {"adamw": StagedAdamW, "sgd": StagedSGD}


def moments_of(config: OptimConfig) -> tuple[str, ...]:
    """Return the names of the optimizer state that has a parameter's shape."""
    return _KINDS[config.algorithm].moments


def build_optimizer(
    groups: dict[str, list[Parameter]],
    config: OptimConfig,
    device: torch.device,
    layers_above: Mapping[Parameter, int] | None = None,
) -> StagedAdamW | StagedSGD:
    """Return the optimizer over named ``groups``; ``apply_plan`` sets rates and freezing.

    Args:
        groups: Parameters per group name. Those that require no gradient, and empty groups, are
            left out.
        config: Algorithm, learning rate and weight decay.
        device: Device of the parameters; AdamW is fused on CUDA.
        layers_above: The number of its encoder's layers above each parameter, 0 where absent, by
            which rates decay.
    """
    listed = [
        group
        for name, own in groups.items()
        for group in _split(name, [p for p in own if p.requires_grad], config, layers_above)
    ]
    if config.algorithm == "sgd":
        return StagedSGD(listed, lr=config.lr, weight_decay=config.weight_decay)
    return StagedAdamW(
        listed, lr=config.lr, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )


def _split(
    name: str,
    parameters: list[Parameter],
    config: OptimConfig,
    layers_above: Mapping[Parameter, int] | None,
) -> list[dict[str, Any]]:
    """Return the optimizer's groups of one of the model's, by layer and by decay where wanted."""
    parts: dict[tuple[int, bool], list[Parameter]] = {}
    for parameter in parameters:
        depth = (layers_above or {}).get(parameter, 0) if config.layer_decay < 1 else 0
        decays = config.decay_norms or parameter.ndim > 1
        parts.setdefault((depth, decays), []).append(parameter)
    return [
        {
            "params": own,
            "name": name,
            "frozen": False,
            "scale": config.layer_decay**depth,
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (depth, decays), own in sorted(parts.items(), key=lambda part: part[0])
    ]


def apply_plan(optimizer: torch.optim.Optimizer, plan: StepPlan) -> None:
    """Set the learning rate and freezing of each of a model's groups as ``plan`` has them.

    Groups are named as in ``VSEModel.parameter_groups``.
    """
    for group in optimizer.param_groups:
        part, _, stage = group["name"].partition(".")
        group["lr"] = plan.learning_rates[part] * group["scale"]
        trained = plan.trained_stages
        group["frozen"] = part == "backbone" and trained is not None and int(stage) > trained
