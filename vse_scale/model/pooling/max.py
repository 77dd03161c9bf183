"""Max pooling: GPO's special case with all weight on the largest value."""

from __future__ import annotations

import torch
from torch import Tensor

from vse_scale.model.pooling.base import Pool


class MaxPool(Pool):
    """Pool a variable number of vectors into the largest value of each channel."""

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``features`` (B, K, D), the first ``lengths`` (B,) vectors of each, into (B, D)."""
        beyond = torch.arange(features.shape[1], device=features.device) >= lengths[:, None]
        return features.masked_fill(beyond[..., None], -torch.inf).amax(1)

    def weight_table(self, lengths: Tensor, steps: int) -> Tensor:
        """Return the weights of sorted values (R, steps): all of it at the first."""
        first = torch.arange(steps, device=lengths.device) == 0
        return first.float().expand(len(lengths), -1)
