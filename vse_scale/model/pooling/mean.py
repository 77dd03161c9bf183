"""The choice of pooling: GPO, or the mean of VSE++ (Faghri et al., BMVC 2018), its special case."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vse_scale.model.pooling.gpo import GPO

PoolKind = Literal["gpo", "mean"]


class MeanPool(nn.Module):
    """Pool a variable number of vectors into their mean; the counterpart of `GPO`."""

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


def make_pool(kind: PoolKind) -> GPO | MeanPool:
    """Return a new pooling operator of this kind."""
    return GPO() if kind == "gpo" else MeanPool()
