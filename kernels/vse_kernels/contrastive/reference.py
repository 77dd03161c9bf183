"""Sums and weights of contrastive losses in plain torch: reference for the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vse_kernels.exact import full_precision
from vse_kernels.hardest.reference import score_dtype, tiles


@dataclass(frozen=True)
class Operands:
    """Arguments of all functions of `vse_kernels.contrastive`; scalars are on the device."""

    queries: Tensor
    candidates: Tensor
    query_ids: Tensor
    candidate_ids: Tensor
    scale: Tensor
    bias: Tensor
    times: Tensor | None

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
        """Yield rows, columns, scores (m, n) and the times (m, 1) of each tile."""
        ids = (self.query_ids, self.candidate_ids)
        for rows, columns, scores in tiles(self.queries, self.candidates, *ids):
            times = None if self.times is None else self.times[rows, None].to(scores)
            yield rows, columns, scores, times


class Sums(NamedTuple):
    """Result of `softmax_sums`, float32 (float64 for float64 embeddings).

    Attributes:
        row_top: (M,) the largest score of a query's negatives, -inf without one.
        row_sum: (M,) sum of exp(scale (score - row_top)) over them, 0 without one.
        column_top: (N,) likewise of a candidate's.
        column_sum: (N,) likewise, each query as often as it counts.
    """

    row_top: Tensor
    row_sum: Tensor
    column_top: Tensor
    column_sum: Tensor


class Weights(NamedTuple):
    """Result of `softmax_weights` and `sigmoid_weights`, float32 (float64 for float64 embeddings).

    The weight of a score is the derivative of the loss with respect to its logit, scale times score
    plus bias; those of a query count as often as it does. Sums of a row are over its negatives.

    Attributes:
        row_product: (M,) sum of weight times score: the derivative with respect to the scale.
        query_gradient: (M, E) sum of weight times candidate, or None if not requested.
        candidate_gradient: (N, E) sum of weight times query, or None if not requested.
        row_loss: (M,) sum of log(1 + exp(logit)); of `sigmoid_weights`, as all below.
        row_weight: (M,) sum of weights: the derivative with respect to the bias.
        row_top: (M,) the largest score, -inf without a negative.
        column_top: (N,) likewise of a candidate's negatives.
    """

    row_product: Tensor
    query_gradient: Tensor | None
    candidate_gradient: Tensor | None
    row_loss: Tensor
    row_weight: Tensor
    row_top: Tensor
    column_top: Tensor


def no_sums(given: Operands) -> Sums:
    """Return the sums of nothing."""
    values = []
    for side in (given.queries, given.candidates):
        dtype = score_dtype(side)
        values += [torch.full(side.shape[:1], v, dtype=dtype, device=side.device) for v in _NONE]
    return Sums(*values)


_NONE = (-torch.inf, 0.0)


def no_weights(given: Operands, query_gradient: bool, candidate_gradient: bool) -> Weights:
    """Return the sums of nothing, and gradients of 0 where they are wanted."""
    row_top, row_sum, column_top, _ = no_sums(given)

    def zeros(side: Tensor) -> Tensor:
        return torch.zeros(side.shape, dtype=row_sum.dtype, device=side.device)

    return Weights(
        row_sum,
        zeros(given.queries) if query_gradient else None,
        zeros(given.candidates) if candidate_gradient else None,
        row_sum.clone(),
        row_sum.clone(),
        row_top,
        column_top,
    )


@full_precision()
def softmax_sums(given: Operands, sums: Sums) -> None:
    """Add to `sums` in tiles."""
    for rows, columns, scores, times in given.tiles():
        of_columns = (sums.column_top[columns], sums.column_sum[columns])
        _add_exponentials(scores, sums.row_top[rows], sums.row_sum[rows], given.scale, None)
        _add_exponentials(scores.T, *of_columns, given.scale, times)


def _add_exponentials(
    scores: Tensor, top: Tensor, total: Tensor, scale: Tensor, times: Tensor | None
) -> None:
    """Add the exponentials of each row of ``scores`` (m, n) to its top and total (m,)."""
    largest = torch.maximum(top, scores.amax(1))
    shift = largest.where(largest != -torch.inf, 0.0)
    terms = ((scores - shift[:, None]) * scale).exp_()
    total.mul_(((top - shift) * scale).exp_())
    total.add_(terms.sum(1) if times is None else (terms @ times)[:, 0])
    top.copy_(largest)


@full_precision()
def softmax_weights(given: Operands, shifts: tuple[Tensor, Tensor], found: Weights) -> None:
    """Add to `found` in tiles."""
    for rows, columns, scores, times in given.tiles():
        logits = scores * given.scale
        by_column = (logits + shifts[1][columns]).exp_()
        weight = (logits + shifts[0][rows, None]).exp_()
        weight += by_column if times is None else by_column.mul_(times)
        _add(given, found, rows, columns, scores, weight)


@full_precision()
def sigmoid_weights(given: Operands, found: Weights) -> None:
    """Add to `found` in tiles."""
    for rows, columns, scores, times in given.tiles():
        logits = scores * given.scale + given.bias
        loss, weight = -F.logsigmoid(-logits), logits.sigmoid()
        if times is not None:
            loss, weight = loss * times, weight * times
        found.row_loss[rows] += loss.sum(1)
        found.row_weight[rows] += weight.sum(1)
        for top, largest in (
            (found.row_top[rows], scores.amax(1)),
            (found.column_top[columns], scores.amax(0)),
        ):
            torch.maximum(top, largest, out=top)
        _add(given, found, rows, columns, scores, weight)


def _add(
    given: Operands, found: Weights, rows: slice, columns: slice, scores: Tensor, weight: Tensor
) -> None:
    """Add a tile's products."""
    found.row_product[rows] += (weight * scores.where(weight != 0, 0.0)).sum(1)
    if found.query_gradient is not None:
        candidates = given.candidates[columns].to(weight.dtype)
        found.query_gradient[rows].addmm_(weight, candidates)
    if found.candidate_gradient is not None:
        queries = given.queries[rows].to(weight.dtype)
        found.candidate_gradient[columns].addmm_(weight.T, queries)
