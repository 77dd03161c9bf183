"""Hardest negatives in plain torch: reference for the kernel, and the CPU path.

Scores are computed tile by tile; the similarity matrix is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vse_kernels.exact import full_precision

# 16 MB of scores in float32: small beside the embeddings, large enough for an efficient product.
# Positions within a tile fit in int16.
TILE_ROWS = 1024
TILE_COLUMNS = 4096


def score_dtype(queries: Tensor) -> torch.dtype:
    """Return the dtype of scores: float64 for float64 embeddings, else float32."""
    return torch.promote_types(queries.dtype, torch.float32)


def spans(size: int, step: int) -> list[slice]:
    """Return consecutive slices of at most `step` that cover `size`."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def masked_pairs(query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Return a mask (m, n) bool of pairs that are no negatives: equal ids, or padding."""
    pairs = query_ids[:, None] == candidate_ids[None, :]
    # On a GPU it is cheaper to do than to ask.
    asks = not pairs.is_cuda and not torch.compiler.is_compiling()
    if asks and not bool((query_ids < 0).any() | (candidate_ids < 0).any()):
        return pairs
    return pairs.logical_or_((query_ids < 0)[:, None]).logical_or_((candidate_ids < 0)[None, :])


def tiles(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Compute the similarity matrix tile by tile, in row-major order.

    Yields:
        rows, columns (slices), and scores (m, n) of that tile, -inf for masked pairs.
    """
    dtype = score_dtype(queries)
    for rows in spans(queries.shape[0], TILE_ROWS):
        left = queries[rows].to(dtype)
        for columns in spans(candidates.shape[0], TILE_COLUMNS):
            scores = left @ candidates[columns].to(dtype).T
            masked = masked_pairs(query_ids[rows], candidate_ids[columns])
            yield rows, columns, scores.masked_fill_(masked, -torch.inf)


def _largest(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return `scores.max(dim)`, the first of equals.

    On CPU `max` with indices takes half as long as the matrix product; two reductions are faster.
    """
    if scores.device.type != "cpu":
        best, index = scores.max(dim)
        return best, index
    best = scores.amax(dim, keepdim=True)
    found = scores == best
    if best.isnan().any():
        found.logical_or_(scores.isnan())
    size = scores.shape[dim]
    position = torch.arange(size, dtype=torch.int16).unsqueeze(1 - dim)
    return best.squeeze(dim), torch.where(found, position, size).amin(dim).long()


def _keep_better(score: Tensor, index: Tensor, new_score: Tensor, new_index: Tensor) -> None:
    """Replace entries in place by larger new ones; NaN counts as the largest."""
    better = (new_score > score) | (new_score.isnan() & ~score.isnan())
    score.copy_(torch.where(better, new_score, score))
    index.copy_(torch.where(better, new_index, index))


@full_precision()
def hardest(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor, columns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mine in tiles; arguments and results as `vse_kernels.hardest_negatives`, or empty."""
    sides = (queries.shape[0], candidates.shape[0] if columns else 0)
    row_score, column_score = (
        torch.full((size,), -torch.inf, dtype=score_dtype(queries), device=queries.device)
        for size in sides
    )
    row_index, column_index = (
        torch.full((size,), -1, dtype=torch.int64, device=queries.device) for size in sides
    )
    # Tiles come in ascending order, and only a strictly larger score replaces an earlier one: ties
    # go to the lowest index.
    for rows, cols, scores in tiles(queries, candidates, query_ids, candidate_ids):
        best, index = _largest(scores, 1)
        _keep_better(row_score[rows], row_index[rows], best, index + cols.start)
        if columns:
            best, index = _largest(scores, 0)
            _keep_better(column_score[cols], column_index[cols], best, index + rows.start)
    return row_score, row_index, column_score, column_index


@full_precision()
def hardest_below(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    query_limit: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mine the rows below each of their limits (M, k); return scores and indices (M, k)."""
    score = torch.full(
        query_limit.shape, -torch.inf, dtype=score_dtype(queries), device=queries.device
    )
    index = torch.full_like(score, -1, dtype=torch.int64)
    for rows, cols, scores in tiles(queries, candidates, query_ids, candidate_ids):
        for number, limit in enumerate(query_limit[rows].unbind(1)):
            below = scores.masked_fill(scores > limit[:, None], -torch.inf)
            best, place = _largest(below, 1)
            _keep_better(score[rows, number], index[rows, number], best, place + cols.start)
    return score, index
