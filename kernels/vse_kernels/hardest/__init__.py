"""Hardest or all violating negatives, without storing the similarity matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vse_kernels.checks import (
    FLOATS,
    INTEGERS,
    require_dtype,
    require_same_device,
    require_shape,
)
from vse_kernels.dispatch import use_triton
from vse_kernels.hardest import choice, operator, reference
from vse_kernels.hardest.violations import Violations, violations

__all__ = ["HardestNegatives", "Violations", "all_violations", "hardest_negatives"]


class HardestNegatives(NamedTuple):
    """The highest-scoring negative of each row and column.

    Attributes:
        row_score: (M,) float32 (float64 for float64 embeddings), -inf without a negative.
        row_index: (M,) int64 into the candidates, -1 without a negative.
        column_score: (N,) likewise over the queries; None without columns.
        column_index: (N,) int64 into the queries; None without columns.
    """

    row_score: Tensor
    row_index: Tensor
    column_score: Tensor | None
    column_index: Tensor | None


@torch.no_grad()
def hardest_negatives(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    columns: bool = True,
    impl: str = "auto",
    query_limit: Tensor | None = None,
) -> HardestNegatives:
    """Find the negative with the largest dot product, per query and per candidate.

    Not differentiable: recompute the scores of the returned pairs. Products of bfloat16 and float16
    embeddings are accumulated and compared in float32. Ties go to the lowest index; a NaN score
    counts as the largest.

    Args:
        queries: (M, E) floating.
        candidates: (N, E) of the same dtype.
        query_ids: (M,) int64 or int32. Rows of equal ids are never each other's negatives. A
            negative id marks padding, which has no negatives and is none.
        candidate_ids: (N,) likewise.
        columns: whether to mine the columns too, in the same pass.
        impl: "auto", "torch" or "triton". "auto" falls back to torch with one warning; "triton"
            raises if it cannot run.
        query_limit: (M,) a query's candidates that score above this are no negatives of it; or
            (M, k), for which the rows' results are (M, k), from one product. By torch alone, and
            without ``columns``.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes or devices disagree, or `impl` is unknown.
    """
    check_operands(queries, candidates, query_ids, candidate_ids)
    limit = choice.unsupported(queries.shape[0], candidates.shape[0], queries.dtype)
    if query_limit is not None:
        if columns:
            raise ValueError("query_limit is of the rows alone; give columns=False")
        _check_rows("query_limit", query_limit, queries)
        require_same_device(queries=queries, query_limit=query_limit)
        if impl != "auto":  # torch is no fallback here, so that "auto" warns of nothing
            use_triton("hardest_negatives", impl, queries, "query_limit is for torch alone")
        several = query_limit if query_limit.dim() == 2 else query_limit[:, None]
        found = reference.hardest_below(queries, candidates, query_ids, candidate_ids, several)
        score, index = (side.view(query_limit.shape) for side in found)
        return HardestNegatives(score, index, None, None)
    with_triton = use_triton("hardest_negatives", impl, queries, limit)
    operands = (queries, candidates, query_ids, candidate_ids, columns, with_triton)
    run = operator.mine if torch.compiler.is_compiling() else operator.hardest
    row_score, row_index, column_score, column_index = run(*operands)
    if not columns:
        return HardestNegatives(row_score, row_index, None, None)
    return HardestNegatives(row_score, row_index, column_score, column_index)


@torch.no_grad()
def all_violations(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    query_positive: Tensor,
    candidate_positive: Tensor,
    margin: float,
    candidate_gradient: bool = False,
    query_limit: Tensor | None = None,
    candidate_limit: Tensor | None = None,
    impl: str = "auto",
) -> Violations:
    """Sum the hinge over every violating negative, with its gradient, in one pass over tiles.

    With s_ij = queries_i . candidates_j, and j a negative of i where their ids differ and neither
    is negative, the two losses are

        row_loss_i = sum over j of max(0, margin + s_ij - query_positive_i)
        column_loss_j = sum over i of max(0, margin + s_ij - candidate_positive_j)

    The gradient covers s_ij only. If the positive scores depend on the embeddings, add their part
    from the counts: the gradient of a positive score is -row_count_i (or -column_count_j). A rank
    with images (b, E) of a batch (B, E) needs two calls for its own gradient: its images as queries
    against all captions, and its captions against all images.

    Args:
        queries: (M, E) floating.
        candidates: (N, E) of the same dtype.
        query_ids: (M,) int64 or int32, as in `hardest_negatives`.
        candidate_ids: (N,) likewise.
        query_positive: (M,) score of each query's positive; or (M, k) of k pairs that share the
            query, infinite for padding: a candidate counts the query once for each of the others.
        candidate_positive: (N,) score of each candidate's positive, or (N, k) likewise.
        margin: margin of the hinge.
        candidate_gradient: whether to return the gradient of the candidates too.
        query_limit: as `query_positive`; a query's candidates that score above this are no
            negatives of it.
        candidate_limit: likewise for a candidate's queries.
        impl: as of `hardest_negatives`; within torch.compile, torch.

    Returns:
        Violations, in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes or devices disagree, or `impl` is unknown.
    """
    check_operands(queries, candidates, query_ids, candidate_ids)
    _check_positive("query_positive", query_positive, queries)
    _check_positive("candidate_positive", candidate_positive, candidates)
    require_same_device(
        queries=queries, query_positive=query_positive, candidate_positive=candidate_positive
    )
    _check_limit("query_limit", query_limit, query_positive)
    _check_limit("candidate_limit", candidate_limit, candidate_positive)
    with_triton = _by_triton(impl, queries, candidates, query_positive, candidate_positive)
    return violations(
        queries,
        candidates,
        query_ids,
        candidate_ids,
        query_positive,
        candidate_positive,
        margin,
        candidate_gradient,
        query_limit,
        candidate_limit,
        with_triton,
    )


def _by_triton(
    impl: str, queries: Tensor, candidates: Tensor, of_query: Tensor, of_candidate: Tensor
) -> bool:
    """Return whether the kernel of all violations runs."""
    if torch.compiler.is_compiling():  # the compiler's kernels fuse what torch computes
        return False
    limit = choice.unsupported(len(queries), len(candidates), queries.dtype)
    limit = limit or choice.unsupported_positives(_positives(of_query), _positives(of_candidate))
    return use_triton("all_violations", impl, queries, limit)


def _positives(positive: Tensor) -> int:
    return positive.shape[1] if positive.dim() == 2 else 1


def _check_limit(name: str, limit: Tensor | None, positive: Tensor) -> None:
    if limit is not None:
        require_shape(name, limit, tuple(positive.shape), f"{tuple(positive.shape)} positives")
        require_same_device(positive=positive, **{name: limit})


def _check_positive(name: str, values: Tensor, rows: Tensor) -> None:
    require_dtype(name, values, FLOATS)
    _check_rows(name, values, rows)


def _check_rows(name: str, values: Tensor, rows: Tensor) -> None:
    shape = (rows.shape[0], None) if values.dim() == 2 else (rows.shape[0],)
    require_shape(name, values, shape, f"rows of shape {tuple(rows.shape)}")


def check_operands(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor
) -> None:
    require_dtype("queries", queries, FLOATS)
    require_dtype("candidates", candidates, (queries.dtype,))
    require_dtype("query_ids", query_ids, INTEGERS)
    require_dtype("candidate_ids", candidate_ids, INTEGERS)
    require_shape("queries", queries, (None, None), "mining")
    of_queries = f"queries of shape {tuple(queries.shape)}"
    require_shape("candidates", candidates, (None, queries.shape[1]), of_queries)
    require_shape("query_ids", query_ids, (queries.shape[0],), of_queries)
    of_candidates = f"candidates of shape {tuple(candidates.shape)}"
    require_shape("candidate_ids", candidate_ids, (candidates.shape[0],), of_candidates)
    require_same_device(
        queries=queries, candidates=candidates, query_ids=query_ids, candidate_ids=candidate_ids
    )
