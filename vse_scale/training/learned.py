"""The numbers that an objective learns, such as a temperature, and their updates.

They are a few scalars whose gradient the objective gives every rank alike, to the bit. So each rank
updates its own copy by the same steps, under any ZeRO stage, and nothing is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vse_scale.config import OptimConfig
from vse_scale.objective.base import Objective
from vse_scale.training.optim import build_optimizer
from vse_scale.training.schedule import StepPlan
from vse_scale.training.state import SharedTensors

_GROUP = "objective"


class LearnedNumbers:
    """`Objective.learned` with an optimizer of the run's algorithm and no weight decay."""

    def __init__(self, objective: Objective, config: OptimConfig) -> None:
        self._objective, self._clip = objective, config.clip
        self._numbers = objective.learned
        if not self._numbers:
            return
        undecayed = config.model_copy(update={"weight_decay": 0.0})
        groups = {_GROUP: list(self._numbers.values())}
        self._optimizer = build_optimizer(groups, undecayed, torch.device("cpu"))
        for number in self._numbers.values():
            self._optimizer.allocate_state(number)

    def update(self, gradients: Mapping[str, Tensor], plan: StepPlan, norm: float) -> None:
        """Update the numbers at the rate of the heads.

        Args:
            gradients: of the global loss, by name.
            plan: of the step; its loss scale counts here too.
            norm: of the model's gradient. What clips that by some factor clips this by the same;
                a norm that is not finite leaves the step out here as there.
        """
        if not self._numbers or not math.isfinite(norm):
            return
        factor = plan.loss_scale * (min(1.0, self._clip / (norm + 1e-6)) if self._clip else 1.0)
        for name, number in self._numbers.items():
            number.grad = gradients[name].detach().to(number) * factor
        for group in self._optimizer.param_groups:
            group["lr"] = plan.learning_rates["heads"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._objective.bound_learned()

    def state(self) -> dict[str, Tensor]:
        """Return the numbers and their optimizer's state by name, as `Engine.shares` has them."""
        kept: dict[str, Tensor] = {}
        for name, number in self._numbers.items():
            kept[f"{_GROUP}.{name}"] = number
            for moment, value in self._optimizer.state[number].items():
                kept[f"{moment}.{_GROUP}.{name}"] = value
        return kept

    def restore(self, tensors: SharedTensors) -> None:
        """Restore what `state` returned."""
        with torch.no_grad():
            for name, own in self.state().items():
                own.copy_(tensors.get(name, own.shape, own.dtype))
