"""An average of the weights over steps, which is validated and exported in their place.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017. Early on the average
follows fast, by (1 + n) / (10 + n) after n updates, so that it forgets the weights it began with.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vse_scale.model.vse import VSEModel
from vse_scale.training.state import SharedTensors

_NAME = "average"


class Average:
    """The exponential average of a model's weights, whole on each rank; buffers are the model's."""

    def __init__(self, model: VSEModel, decay: float) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        self._updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, model: VSEModel) -> None:
        """Move the average towards the weights of ``model``, after an update."""
        self._updates += 1
        done = int(self._updates)
        decay = min(self._decay, (1 + done) / (10 + done))
        own: list[Tensor] = list(self._model.parameters())
        new: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(own, new, 1 - decay)

    @torch.no_grad()
    def with_buffers_of(self, model: VSEModel) -> VSEModel:
        """Return the model of the average, with the buffers of ``model``."""
        for own, new in zip(self._model.buffers(), model.buffers(), strict=True):
            own.copy_(new)
        return self._model

    def state(self) -> dict[str, Tensor]:
        """Return the average and its number of updates by name, as `Engine.shares` has them."""
        weights = {f"{_NAME}.{name}": own for name, own in self._model.named_parameters()}
        return {_NAME: self._updates, **weights}

    @torch.no_grad()
    def restore(self, tensors: SharedTensors) -> None:
        """Restore what `state` returned."""
        for name, own in self.state().items():
            own.copy_(tensors.get(name, own.shape, own.dtype))
