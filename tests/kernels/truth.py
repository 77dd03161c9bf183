"""Independent truths for the kernels: short, slow, in float64, sharing no code with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def published_pool(features: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    """The published formulation: mask, sort, mask, multiply by weights (B, K), sum."""
    beyond = torch.arange(features.shape[1], device=features.device) >= lengths[:, None]
    masked = features.masked_fill(beyond[:, :, None], -math.inf)
    ordered = masked.sort(dim=1, descending=True, stable=True)[0]
    ordered = ordered.masked_fill(beyond[:, :, None], 0)
    return (ordered * weights.masked_fill(beyond, 0)[:, :, None]).sum(1)


def pool_truth(
    features: Tensor, lengths: Tensor, table: Tensor, rows: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """pooled (B, D), gradient of features (B, K, D) and of table (R, K), all in float64."""
    x = features.detach().double().requires_grad_()
    w = table.detach().double().requires_grad_()
    pooled = published_pool(x, lengths, w[rows])
    pooled.backward(upstream.double())
    return pooled.detach(), x.grad, w.grad


def masked_scores(queries: Tensor, candidates: Tensor, qids: Tensor, cids: Tensor) -> Tensor:
    scores = queries.double() @ candidates.double().T
    apart = (qids[:, None] != cids[None]) & (qids[:, None] >= 0) & (cids[None] >= 0)
    return scores.masked_fill(~apart, -math.inf)


def rank_truth(scores: Tensor, positives: list[list[int]], excluded: list[int]) -> list[int]:
    """Ranks by Python's own sort of the scores (M, N)."""
    ranks = []
    for row, own, out in zip(scores.tolist(), positives, excluded, strict=True):
        own = [i for i in own if i != out]
        if not own:
            ranks.append(0)
            continue
        best = max(row[i] for i in own)
        ranks.append(1 + sum(s >= best for i, s in enumerate(row) if i not in own and i != out))
    return ranks
