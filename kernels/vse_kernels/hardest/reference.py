"""The hardest negatives in plain torch: the truth for the kernel, and the path for CPU.

The similarity matrix is walked in tiles and never stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 16 MB of scores in float32: small beside the embeddings, large enough for an efficient product.
# Places within a tile are counted in int16.
TILE_ROWS = 1024
TILE_COLUMNS = 4096


def score_dtype(queries: Tensor) -> torch.dtype:
    """Scores are float32, or float64 where the embeddings are."""
    return torch.promote_types(queries.dtype, torch.float32)


def spans(size: int, step: int) -> list[slice]:
    """Consecutive slices of at most `step` that cover `size`."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def barred(query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Which pairs may not be mined (m, n) bool: equal ids, or a negative one."""
    pairs = query_ids[:, None] == candidate_ids[None, :]
    return pairs.logical_or_((query_ids < 0)[:, None]).logical_or_((candidate_ids < 0)[None, :])


def tiles(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Walk the similarity matrix row by row of tiles.

    Yields:
        rows, columns (slices), and scores (m, n) of that tile, -inf where a pair is barred.
    """
    dtype = score_dtype(queries)
    for rows in spans(queries.shape[0], TILE_ROWS):
        left = queries[rows].to(dtype)
        for columns in spans(candidates.shape[0], TILE_COLUMNS):
            scores = left @ candidates[columns].to(dtype).T
            no_negative = barred(query_ids[rows], candidate_ids[columns])
            yield rows, columns, scores.masked_fill_(no_negative, -torch.inf)


def _largest(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`scores.max(dim)`, the first of equals; on CPU that takes half as long as the product."""
    if scores.device.type != "cpu":
        best, index = scores.max(dim)
        return best, index
    best = scores.amax(dim, keepdim=True)
    found = scores == best
    if best.isnan().any():
        found.logical_or_(scores.isnan())
    size = scores.shape[dim]
    place = torch.arange(size, dtype=torch.int16).unsqueeze(1 - dim)
    return best.squeeze(dim), torch.where(found, place, size).amin(dim).long()


def _keep_better(score: Tensor, index: Tensor, new_score: Tensor, new_index: Tensor) -> None:
    """Take new entries over in place where they are larger; NaN counts as the largest."""
    better = (new_score > score) | (new_score.isnan() & ~score.isnan())
    score.copy_(torch.where(better, new_score, score))
    index.copy_(torch.where(better, new_index, index))


def hardest(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor, columns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results as those of `vse_kernels.hardest_negatives`; empty without columns."""
    sides = (queries.shape[0], candidates.shape[0] if columns else 0)
    row_score, column_score = (
        torch.full((size,), -torch.inf, dtype=score_dtype(queries), device=queries.device)
        for size in sides
    )
    row_index, column_index = (
        torch.full((size,), -1, dtype=torch.int64, device=queries.device) for size in sides
    )
    # Tiles come in ascending order and only a strictly larger score replaces one, so ties stay
    # with the lowest index.
    for rows, cols, scores in tiles(queries, candidates, query_ids, candidate_ids):
        best, index = _largest(scores, 1)
        _keep_better(row_score[rows], row_index[rows], best, index + cols.start)
        if columns:
            best, index = _largest(scores, 0)
            _keep_better(column_score[cols], column_index[cols], best, index + rows.start)
    return row_score, row_index, column_score, column_index
