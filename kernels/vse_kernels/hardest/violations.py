"""Hinge over all violating negatives: value and gradient in one pass over tiles."""

from __future__ import annotations

from dataclasses import dataclass
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
    with_triton: bool = False,
) -> Violations:
    """Sum in tiles; arguments and results as `vse_kernels.all_violations`."""
    dtype = score_dtype(queries)
    query_ids = _padded_ids(query_ids, query_positive)
    candidate_ids = _padded_ids(candidate_ids, candidate_positive)
    rows = Side.of(query_positive, query_ids, margin, query_limit, dtype)
    columns = Side.of(candidate_positive, candidate_ids, margin, candidate_limit, dtype)
    sum_up = _by_triton if with_triton else _by_torch
    to_queries, to_candidates = sum_up(
        queries, candidates, query_ids, candidate_ids, rows, columns, candidate_gradient
    )
    return Violations(
        rows.loss.view(query_positive.shape),
        rows.count.view(query_positive.shape),
        columns.loss.view(candidate_positive.shape),
        columns.count.view(candidate_positive.shape),
        to_queries,
        to_candidates if candidate_gradient else None,
    )


def _by_triton(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    rows: Side,
    columns: Side,
    candidate_gradient: bool,
) -> tuple[Tensor, Tensor]:
    from vse_kernels.hardest import choice, violations_launch

    blocks = choice.VIOLATIONS[queries.dtype]
    if columns.threshold.shape[1] == 1:
        return violations_launch.violations(
            queries, candidates, query_ids, candidate_ids, rows, columns,
            True, candidate_gradient, blocks,
        )  # fmt: skip
    # The kernel's rows are the side with several positives each.
    return violations_launch.violations(
        candidates, queries, candidate_ids, query_ids, columns, rows,
        candidate_gradient, True, blocks,
    )[::-1]  # fmt: skip


@full_precision()
def _by_torch(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    rows: Side,
    columns: Side,
    candidate_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype = score_dtype(queries)
    to_queries, to_candidates = (
        torch.zeros(side.shape, dtype=dtype, device=side.device) for side in (queries, candidates)
    )
    # Masked pairs have score -inf, so their hinge is 0.
    for of_rows, of_columns, scores in tiles(queries, candidates, query_ids, candidate_ids):
        own, other = rows.part(of_rows), columns.part(of_columns)
        pull = own.add(scores, other.times())
        pull.add_(other.add(scores.T, own.times()).T)
        to_queries[of_rows].addmm_(pull, candidates[of_columns].to(dtype))
        if candidate_gradient:
            to_candidates[of_columns].addmm_(pull.T, queries[of_rows].to(dtype))
    return to_queries, to_candidates


def _padded_ids(ids: Tensor, positive: Tensor) -> Tensor:
    """Return `ids` (M,), -1 for rows whose positives (M, k) are all padding."""
    if positive.dim() != 2:
        return ids
    return ids.masked_fill((positive == torch.inf).all(1), -1)


@dataclass(frozen=True)
class Side:
    """Rows of one side, each with k positives, and the sums of their hinges.

    Attributes:
        threshold: (M, k) of positives less the margin; infinite for padding, which never violates.
        limit: (M, k) scores above this are no negatives; or None.
        loss: (M, k), so far.
        count: (M, k) int64, so far.
    """

    threshold: Tensor
    limit: Tensor | None
    loss: Tensor
    count: Tensor

    @classmethod
    def of(
        cls,
        positive: Tensor,
        ids: Tensor,
        margin: float,
        limit: Tensor | None,
        dtype: torch.dtype,
    ) -> Side:
        """Begin with ``positive`` (M,) or (M, k) of rows with ``ids`` (M,), and sums of 0."""
        several = positive if positive.dim() == 2 else positive[:, None]
        threshold = (several.to(dtype) - margin).masked_fill(ids[:, None] < 0, torch.inf)
        return cls(
            threshold.contiguous(),
            None if limit is None else limit.reshape(several.shape).contiguous(),
            torch.zeros_like(threshold),
            torch.zeros_like(threshold, dtype=torch.int64),
        )

    def part(self, rows: slice) -> Side:
        """Return some rows, whose sums are these."""
        limit = None if self.limit is None else self.limit[rows]
        return Side(self.threshold[rows], limit, self.loss[rows], self.count[rows])

    def times(self) -> Tensor | None:
        """Return how often each row counts for the other side, (M,); None: once."""
        if self.threshold.shape[1] == 1:
            return None
        return (self.threshold < torch.inf).sum(1).to(self.threshold.dtype)

    def add(self, scores: Tensor, times: Tensor | None) -> Tensor:
        """Add the hinges of ``scores`` (M, n); return the number of violations of each (M, n).

        times: (n,) how often each column counts.
        """
        pull = torch.zeros_like(scores)
        for number, threshold in enumerate(self.threshold.unbind(1)):
            hinge = (scores - threshold[:, None]).clamp_min_(0)
            if self.limit is not None:
                hinge.masked_fill_(scores > self.limit[:, number, None], 0)
            violates = hinge > 0
            if times is None:
                self.loss[:, number] += hinge.sum(1)
                self.count[:, number] += violates.sum(1)
                pull += violates
            else:
                counted = violates * times
                self.loss[:, number] += hinge @ times
                self.count[:, number] += counted.sum(1).long()
                pull += counted
        return pull
