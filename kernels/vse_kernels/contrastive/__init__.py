"""Losses over all pairs' scores, InfoNCE and sigmoid, without storing the similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from vse_kernels.checks import require_same_device, require_shape
from vse_kernels.contrastive import reference
from vse_kernels.contrastive.reference import Operands, Sums, Weights
from vse_kernels.dispatch import use_triton
from vse_kernels.hardest import check_operands
from vse_kernels.hardest.choice import unsupported
from vse_kernels.hardest.reference import score_dtype

__all__ = ["Sums", "Weights", "sigmoid_weights", "softmax_sums", "softmax_weights"]


@torch.no_grad()
def softmax_sums(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    scale: float | Tensor,
    query_times: Tensor | None = None,
    impl: str = "auto",
) -> Sums:
    """Sum the exponentials of all scores of negatives, of rows and of columns in one pass.

    A query and a candidate are negatives of each other where their ids differ and neither is
    negative.

    Args:
        queries: (M, E) floating.
        candidates: (N, E) of the same dtype.
        query_ids: (M,) int64 or int32, as in `hardest_negatives`.
        candidate_ids: (N,) likewise.
        scale: of the scores, positive; a tensor is read on the device.
        query_times: (M,) how often each query counts for the candidates: an image of several
            captions is one row. None: once.
        impl: as of `hardest_negatives`; within torch.compile, torch.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes or devices disagree, or `impl` is unknown.
    """
    given = _operands(queries, candidates, query_ids, candidate_ids, scale, 0.0, query_times)
    sums = reference.no_sums(given)
    if _by_triton("softmax_sums", impl, given):
        from vse_kernels.contrastive import launch

        launch.softmax_sums(given, sums)
    else:
        reference.softmax_sums(given, sums)
    return sums


@torch.no_grad()
def softmax_weights(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    scale: float | Tensor,
    query_shift: Tensor,
    candidate_shift: Tensor,
    query_times: Tensor | None = None,
    query_gradient: bool = True,
    candidate_gradient: bool = True,
    impl: str = "auto",
) -> Weights:
    """Weigh each score by both softmaxes, and sum the embeddings by these weights.

    With s_ij = queries_i . candidates_j of negatives, the weight of s_ij is

        exp(scale s_ij + query_shift_i) + query_times_i exp(scale s_ij + candidate_shift_j)

    where a shift is minus the logarithm of the softmax's whole sum: of a query that counts several
    times, the logarithm of the sum of its softmaxes' inverse sums. Neither term may exceed the
    number of times.

    Args:
        queries: as of `softmax_sums`, and those up to `scale`.
        candidates: likewise.
        query_ids: likewise.
        candidate_ids: likewise.
        scale: likewise.
        query_shift: (M,) floating.
        candidate_shift: (N,) floating.
        query_times: as of `softmax_sums`.
        query_gradient: whether to return the gradient of the queries.
        candidate_gradient: likewise of the candidates.
        impl: as of `softmax_sums`.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes or devices disagree, or `impl` is unknown.
    """
    given = _operands(queries, candidates, query_ids, candidate_ids, scale, 0.0, query_times)
    _check_rows("query_shift", query_shift, queries)
    _check_rows("candidate_shift", candidate_shift, candidates)
    wide = given.scale.dtype
    shifts = (query_shift.to(wide).contiguous(), candidate_shift.to(wide).contiguous())
    found = reference.no_weights(given, query_gradient, candidate_gradient)
    if _by_triton("softmax_weights", impl, given):
        from vse_kernels.contrastive import launch

        launch.softmax_weights(given, shifts, found)
    else:
        reference.softmax_weights(given, shifts, found)
    return found


@torch.no_grad()
def sigmoid_weights(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    query_times: Tensor | None = None,
    query_gradient: bool = True,
    candidate_gradient: bool = True,
    impl: str = "auto",
) -> Weights:
    """Sum log(1 + exp(scale s_ij + bias)) over all scores of negatives, with its gradient.

    Args:
        queries: as of `softmax_sums`, and those up to `scale`.
        candidates: likewise.
        query_ids: likewise.
        candidate_ids: likewise.
        scale: likewise.
        bias: of the logits; a tensor is read on the device.
        query_times: (M,) how often each query counts. None: once.
        query_gradient: whether to return the gradient of the queries.
        candidate_gradient: likewise of the candidates.
        impl: as of `softmax_sums`.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes or devices disagree, or `impl` is unknown.
    """
    given = _operands(queries, candidates, query_ids, candidate_ids, scale, bias, query_times)
    found = reference.no_weights(given, query_gradient, candidate_gradient)
    if _by_triton("sigmoid_weights", impl, given):
        from vse_kernels.contrastive import launch

        launch.sigmoid_weights(given, found)
    else:
        reference.sigmoid_weights(given, found)
    return found


def _operands(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    times: Tensor | None,
) -> Operands:
    check_operands(queries, candidates, query_ids, candidate_ids)
    if times is not None:
        _check_rows("query_times", times, queries)
    numbers = _number("scale", scale, queries), _number("bias", bias, queries)
    return Operands(queries, candidates, query_ids, candidate_ids, *numbers, times)


def _number(name: str, value: float | Tensor, rows: Tensor) -> Tensor:
    number = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    require_shape(name, number, (), "a number")
    # Else the host would wait for the device.
    return number.to(score_dtype(rows)).to(rows.device, non_blocking=True)


def _check_rows(name: str, values: Tensor, rows: Tensor) -> None:
    require_shape(name, values, rows.shape[:1], f"rows of shape {tuple(rows.shape)}")
    require_same_device(rows=rows, **{name: values})


def _by_triton(name: str, impl: str, given: Operands) -> bool:
    if torch.compiler.is_compiling():  # the compiler's kernels fuse what torch computes
        return False
    sizes = (len(given.queries), len(given.candidates))
    return use_triton(name, impl, given.queries, unsupported(*sizes, given.queries.dtype))
