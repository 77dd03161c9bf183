"""The hardest negatives in plain torch: the truth for the kernel, and the path for CPU.

The similarity matrix is walked in tiles and never stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 16 MB of scores in float32: small beside the embeddings, large enough for an efficient product.
TILE_ROWS = 1024
TILE_COLUMNS = 4096


def score_dtype(queries: Tensor) -> torch.dtype:
    """Scores are float32, or float64 where the embeddings are."""
    return torch.promote_types(queries.dtype, torch.float32)


def spans(size: int, step: int) -> list[slice]:
    """Consecutive slices of at most `step` that cover `size`."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def mined_ids(query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Which pairs may be mined (m, n) bool: ids that differ, neither of them negative."""
    differ = query_ids[:, None] != candidate_ids[None, :]
    return differ & (query_ids >= 0)[:, None] & (candidate_ids >= 0)[None, :]


def tiles(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Walk the similarity matrix row by row of tiles.

    Yields:
        rows, columns (slices), scores (m, n) of that tile, and which of them may be mined (m, n).
    """
    dtype = score_dtype(queries)
    for rows in spans(queries.shape[0], TILE_ROWS):
        left = queries[rows].to(dtype)
        for columns in spans(candidates.shape[0], TILE_COLUMNS):
            scores = left @ candidates[columns].to(dtype).T
            yield rows, columns, scores, mined_ids(query_ids[rows], candidate_ids[columns])


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
    # with the lowest index; torch.max itself returns the first.
    for rows, cols, scores, mined in tiles(queries, candidates, query_ids, candidate_ids):
        scores.masked_fill_(~mined, -torch.inf)
        best, index = scores.max(dim=1)
        _keep_better(row_score[rows], row_index[rows], best, index + cols.start)
        if columns:
            best, index = scores.max(dim=0)
            _keep_better(column_score[cols], column_index[cols], best, index + rows.start)
    return row_score, row_index, column_score, column_index
