"""Mean pooling, of VSE++ (Faghri et al., BMVC 2018): GPO's special case with equal weights."""

from __future__ import annotations

import torch
from torch import Tensor

from vse_scale.model.pooling.base import Pool


class MeanPool(Pool):
    """Pool a variable number of vectors into their mean."""

    commutes = True

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``features`` (B, K, D), the first ``lengths`` (B,) vectors of each, into (B, D)."""
        present = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        # At least in float32, whatever autocast does.
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        return wide.where(present[..., None], 0.0).sum(1) / lengths[:, None]

    def weight_table(self, lengths: Tensor, steps: int) -> Tensor:
        """Return the pooling weights (R, steps) of each of ``lengths`` (R,), zero beyond it."""
        present = torch.arange(steps, device=lengths.device) < lengths[:, None]
        return present / lengths[:, None]
