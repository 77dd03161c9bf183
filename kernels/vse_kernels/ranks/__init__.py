"""Exact ranks for retrieval evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from vse_kernels.checks import FLOATS, require_dtype, require_same_device, require_shape
from vse_kernels.ranks import reference
from vse_kernels.ranks.paired import paired_ranks

__all__ = ["paired_ranks", "retrieval_ranks"]


@torch.no_grad()
def retrieval_ranks(
    queries: Tensor,
    candidates: Tensor,
    positive_offsets: Tensor,
    positive_indices: Tensor,
    excluded: Tensor | None = None,
    row_start: int = 0,
) -> Tensor:
    """Rank the best positive of each query: 1 + the non-positives that score at least as high.

    Exact and independent of sharding: a process with rows [a, b) of the queries and `row_start=a`
    gets bitwise the ranks [a, b) of the whole. Memory is bounded by a strip of at most 64 tiles of
    1,000 x 2,500 scores; the matrix is never stored. Scores are float32 (float64 for float64
    embeddings).

    Args:
        queries: (M, E) floating.
        candidates: (N, E) of the same dtype; always all of them.
        positive_offsets: (M + 1,) int64: query i has the positives
            positive_indices[positive_offsets[i] : positive_offsets[i + 1]].
        positive_indices: (P,) int64 into the candidates. A query's own positives never count
            against it.
        excluded: (M,) int64, a candidate left out of the ranking of each query, even as a positive
            (the query itself, if queries and candidates are one set); -1 for none.
        row_start: global number of the first query, if the queries are part of a larger set.

    Returns:
        ranks (M,) int64 from 1; 0 for a query without positives. A non-positive with score NaN
        counts against the query; a positive with score NaN has the lowest score.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes, devices or offsets disagree, or indices are out of range.
    """
    require_dtype("queries", queries, FLOATS)
    require_dtype("candidates", candidates, (queries.dtype,))
    require_shape("queries", queries, (None, None), "retrieval_ranks")
    of_queries = f"queries of shape {tuple(queries.shape)}"
    require_shape("candidates", candidates, (None, queries.shape[1]), of_queries)
    require_dtype("positive_offsets", positive_offsets, (torch.int64,))
    require_dtype("positive_indices", positive_indices, (torch.int64,))
    require_shape("positive_offsets", positive_offsets, (queries.shape[0] + 1,), of_queries)
    require_shape("positive_indices", positive_indices, (None,), "retrieval_ranks")
    require_same_device(
        queries=queries,
        candidates=candidates,
        positive_offsets=positive_offsets,
        positive_indices=positive_indices,
    )
    _check_offsets(positive_offsets, positive_indices.shape[0])
    _check_indices("positive_indices", positive_indices, 0, candidates.shape[0])
    if excluded is not None:
        require_dtype("excluded", excluded, (torch.int64,))
        require_shape("excluded", excluded, (queries.shape[0],), of_queries)
        require_same_device(queries=queries, excluded=excluded)
        _check_indices("excluded", excluded, -1, candidates.shape[0])
    if row_start < 0:
        raise ValueError(f"row_start is {row_start}; it must be at least 0")
    return reference.ranks(
        queries, candidates, positive_offsets, positive_indices, excluded, row_start
    )


def _check_offsets(offsets: Tensor, positives: int) -> None:
    """Check the offsets, with a host synchronisation: `ranks` reads them on the host anyway."""
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != positives:
        raise ValueError(
            f"positive_offsets runs from {first} to {last}; it must run from 0 to {positives}, "
            "the number of positive_indices"
        )
    if bool((offsets.diff() < 0).any()):
        raise ValueError("positive_offsets decreases somewhere; it must never decrease")


def _check_indices(name: str, indices: Tensor, low: int, candidates: int) -> None:
    if indices.numel() == 0:
        return
    smallest, largest = (int(value) for value in indices.aminmax())
    if smallest < low or largest >= candidates:
        wrong = smallest if smallest < low else largest
        raise ValueError(
            f"{name} holds {wrong}; {candidates} candidates allow {low} to {candidates - 1}"
        )
