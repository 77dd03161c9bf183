"""Hinge over all violating negatives: value and gradient in one pass over tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vse_kernels.hardest.reference import score_dtype, tiles


class Violations(NamedTuple):
    """Result of `all_violations`; sums are over the negatives of a row or column.

    Attributes:
        row_loss: (M,) sum of max(0, margin + s_ij - query_positive_i) over j.
        row_count: (M,) int64, number of positive terms.
        column_loss: (N,) sum of max(0, margin + s_ij - candidate_positive_j) over i.
        column_count: (N,) int64.
        query_gradient: (M, E) gradient of both losses' sum with respect to `queries`, the positive
            scores held constant.
        candidate_gradient: (N, E) the same for `candidates`, or None if not requested.
    """

    row_loss: Tensor
    row_count: Tensor
    column_loss: Tensor
    column_count: Tensor
    query_gradient: Tensor
    candidate_gradient: Tensor | None


def violations(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    query_positive: Tensor,
    candidate_positive: Tensor,
    margin: float,
    candidate_gradient: bool,
    query_limit: Tensor | None = None,
    candidate_limit: Tensor | None = None,
) -> Violations:
    """Sum in tiles; arguments and results as `vse_kernels.all_violations`."""
    dtype = score_dtype(queries)
    device = queries.device
    sizes = (queries.shape[0], candidates.shape[0])
    row_loss, column_loss = (torch.zeros(size, dtype=dtype, device=device) for size in sizes)
    row_count, column_count = (
        torch.zeros(size, dtype=torch.int64, device=device) for size in sizes
    )
    to_queries = torch.zeros(queries.shape, dtype=dtype, device=device)
    to_candidates = torch.zeros(candidates.shape, dtype=dtype, device=device)
    # An infinite threshold: padded rows and columns never violate.
    row_threshold = (query_positive.to(dtype) - margin).masked_fill(query_ids < 0, torch.inf)
    column_threshold = (candidate_positive.to(dtype) - margin).masked_fill(
        candidate_ids < 0, torch.inf
    )
    # Masked pairs have score -inf, so their hinge is 0.
    for rows, cols, scores in tiles(queries, candidates, query_ids, candidate_ids):
        row_hinge = (scores - row_threshold[rows, None]).clamp_min_(0)
        column_hinge = (scores - column_threshold[None, cols]).clamp_min_(0)
        if query_limit is not None:
            row_hinge.masked_fill_(scores > query_limit[rows, None], 0)
        if candidate_limit is not None:
            column_hinge.masked_fill_(scores > candidate_limit[None, cols], 0)
        by_row, by_column = row_hinge > 0, column_hinge > 0
        row_loss[rows] += row_hinge.sum(1)
        column_loss[cols] += column_hinge.sum(0)
        row_count[rows] += by_row.sum(1)
        column_count[cols] += by_column.sum(0)
        pull = by_row.to(dtype).add_(by_column)
        to_queries[rows].addmm_(pull, candidates[cols].to(dtype))
        if candidate_gradient:
            to_candidates[cols].addmm_(pull.T, queries[rows].to(dtype))
    return Violations(
        row_loss,
        row_count,
        column_loss,
        column_count,
        to_queries,
        to_candidates if candidate_gradient else None,
    )
