"""Mean pooling, of VSE++ (Faghri et al., BMVC 2018): GPO's special case with equal weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vse_scale.model.pooling.base import Pool


class MeanPool(Pool):
    """Pool a variable number of vectors into their mean."""

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``features`` (B, K, D), the first ``lengths`` (B,) vectors of each, into (B, D)."""
        present = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        # At least in float32, whatever autocast does.
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        return wide.where(present[..., None], 0.0).sum(1) / lengths[:, None]

    def of_linear(
        self, linear: Callable[[Tensor], Tensor], features: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return what ``linear`` makes of the mean of ``features`` (B, K, C), (B, D)."""
        return linear(self(features, lengths).to(features.dtype))

    def weight_table(self, lengths: Tensor, steps: int) -> Tensor:
        """Return the pooling weights (R, steps) of each of ``lengths`` (R,), zero beyond it."""
        present = torch.arange(steps, device=lengths.device) < lengths[:, None]
        return present / lengths[:, None]
