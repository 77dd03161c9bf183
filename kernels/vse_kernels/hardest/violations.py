"""Hinge over all violating negatives: value and gradient in one pass over tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vse_kernels.exact import full_precision
from vse_kernels.hardest.reference import score_dtype, tiles


class Violations(NamedTuple):
    """Result of `all_violations`; sums are over the negatives of a row or column.

    Attributes:
        row_loss: as `query_positive`, sum of max(0, margin + s_ij - query_positive_i) over j.
        row_count: likewise, int64, number of positive terms.
        column_loss: as `candidate_positive`, sum of max(0, margin + s_ij - candidate_positive_j)
            over i.
        column_count: likewise, int64.
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


@full_precision()
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
    query_ids = _padded_ids(query_ids, query_positive)
    candidate_ids = _padded_ids(candidate_ids, candidate_positive)
    rows = _Side(query_positive, query_ids, margin, query_limit, dtype)
    columns = _Side(candidate_positive, candidate_ids, margin, candidate_limit, dtype)
    to_queries, to_candidates = (
        torch.zeros(side.shape, dtype=dtype, device=side.device) for side in (queries, candidates)
    )
    # Masked pairs have score -inf, so their hinge is 0.
    for of_rows, of_columns, scores in tiles(queries, candidates, query_ids, candidate_ids):
        pull = rows.add(of_rows, scores, columns.times(of_columns))
        pull.add_(columns.add(of_columns, scores.T, rows.times(of_rows)).T)
        to_queries[of_rows].addmm_(pull, candidates[of_columns].to(dtype))
        if candidate_gradient:
            to_candidates[of_columns].addmm_(pull.T, queries[of_rows].to(dtype))
    return Violations(
        rows.loss.view(query_positive.shape),
        rows.count.view(query_positive.shape),
        columns.loss.view(candidate_positive.shape),
        columns.count.view(candidate_positive.shape),
        to_queries,
        to_candidates if candidate_gradient else None,
    )


def _padded_ids(ids: Tensor, positive: Tensor) -> Tensor:
    """Return `ids` (M,), -1 for rows whose positives (M, k) are all padding."""
    if positive.dim() != 2:
        return ids
    return ids.masked_fill((positive == torch.inf).all(1), -1)


class _Side:
    """Sums of the hinge over one side's rows, each with k positives.

    Attributes:
        loss: (M, k).
        count: (M, k) int64.
    """

    def __init__(
        self,
        positive: Tensor,
        ids: Tensor,
        margin: float,
        limit: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        several = positive if positive.dim() == 2 else positive[:, None]
        # An infinite threshold: padding never violates.
        self._threshold = (several.to(dtype) - margin).masked_fill(ids[:, None] < 0, torch.inf)
        self._limit = None if limit is None else limit.view(several.shape)
        self.loss = torch.zeros(several.shape, dtype=dtype, device=several.device)
        self.count = torch.zeros(several.shape, dtype=torch.int64, device=several.device)

    def times(self, rows: slice) -> Tensor | None:
        """Return how often each row counts for the other side, (m,); None: once."""
        if self._threshold.shape[1] == 1:
            return None
        return (self._threshold[rows] < torch.inf).sum(1).to(self._threshold.dtype)

    def add(self, rows: slice, scores: Tensor, times: Tensor | None) -> Tensor:
        """Add the hinges of ``scores`` (m, n); return the number of violations of each (m, n).

        times: (n,) how often each column counts.
        """
        pull = torch.zeros_like(scores)
        for number, threshold in enumerate(self._threshold[rows].unbind(1)):
            hinge = (scores - threshold[:, None]).clamp_min_(0)
            if self._limit is not None:
                hinge.masked_fill_(scores > self._limit[rows, number, None], 0)
            violates = hinge > 0
            if times is None:
                self.loss[rows, number] += hinge.sum(1)
                self.count[rows, number] += violates.sum(1)
                pull += violates
            else:
                counted = violates * times
                self.loss[rows, number] += hinge @ times
                self.count[rows, number] += counted.sum(1).long()
                pull += counted
        return pull
