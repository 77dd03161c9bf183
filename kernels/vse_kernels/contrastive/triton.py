"""Sums and weights of contrastive losses in Triton: a function of each score, tile by tile.

A tile's scores are computed once and serve both sides. Sums over its rows and columns leave it for
each tile apart, so that they are added in the same order every time. Where the loss's gradient is
wanted, each score's weight leaves it in the embeddings' own dtype: the gradients are products of a
strip of weights with the embeddings, by the matrix library. Programs that own rows of the gradient
would store no weights, but 128 rows of 1,024 float32 do not fit beside a tile: the scores would be
computed again for each part of the width, see the README.

KIND says which of them a tile gives. "sums": the parts (largest score, sum of exponentials less it)
of both sides. "softmax": the weights, and the rows' sum of weight times score. "sigmoid": the
weights, the rows' sums of loss, of weight and of weight times score, then the largest score of
either side.
"""

# Triton types a kernel's parameters when it compiles.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.hardest.triton import masked_scores, tile_of_program

LOG2_E = tl.constexpr(1.4426950408889634)
# Below every score but that of a masked pair, which times a weight of 0 is 0.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def log2p(x):
    """Return log2(1 + x) for x in [0, 1]; the logarithm of a rounded 1 + x would lose small x.

    The polynomial meets log2(1 + x) / x at Chebyshev's points, within 6e-9 of it.
    """
    value = -0.00458208176 * x + 0.02819390742
    value = value * x - 0.08132993221
    value = value * x + 0.1521123383
    value = value * x - 0.2202947301
    value = value * x + 0.2836810828
    value = value * x - 0.3599757305
    value = value * x + 0.4808460805
    value = value * x - 0.7213459717
    value = value * x + 1.442695033
    return value * x


@triton.jit
def add_exponentials(
    scores,
    sums,
    part,
    index,
    size,
    scale,
    times,
    AXIS: tl.constexpr,
    COUNTED: tl.constexpr,
):
    """Store the largest score along AXIS, and the sum of 2**(scale (score - largest)).

    sums: (2, ...) of this tile, `part` entries apart; `index` below `size` is stored.
    times: how often each entry along AXIS counts, if COUNTED.
    """
    top = tl.max(scores, axis=AXIS)
    shift = tl.where(top == float("-inf"), 0.0, top) * scale
    terms = tl.exp2(scores * scale - tl.expand_dims(shift, AXIS))
    if COUNTED:
        terms = terms * tl.expand_dims(times, 1 - AXIS)
    tl.store(sums + index, top, mask=index < size)
    tl.store(sums + part + index, tl.sum(terms, axis=AXIS), mask=index < size)


@triton.jit
def softmax_weight(
    scores,
    scale,
    query_shift,
    candidate_shift,
    times,
    row,
    column,
    M,
    N,
    COUNTED: tl.constexpr,
):
    """Return each score's weight; `scale` is of base 2, and the rest as of `contrast`."""
    of_query = tl.load(query_shift + row, mask=row < M, other=0.0) * LOG2_E
    of_candidate = tl.load(candidate_shift + column, mask=column < N, other=0.0) * LOG2_E
    weight = tl.exp2(scores * scale + of_query[:, None])
    by_column = tl.exp2(scores * scale + of_candidate[None, :])
    if COUNTED:
        by_column = by_column * times[:, None]
    return weight + by_column


@triton.jit
def sigmoid_weight(
    scores,
    scale,
    numbers,
    times,
    of_rows,
    of_columns,
    row_part,
    row,
    column,
    M,
    N,
):
    """Store all sums but that of weight times score; return the weights, and that one's place.

    All in base 2. A masked pair has loss 0, and 2**-inf for its weight.
    of_rows, of_columns: `row_sums` and `column_sums` of the tile; the rest as of `contrast`.
    """
    tl.store(of_rows + 3 * row_part + row, tl.max(scores, axis=1), mask=row < M)
    tl.store(of_columns + column, tl.max(scores, axis=0), mask=column < N)
    logits = scores * scale + tl.load(numbers + 1) * LOG2_E
    loss = tl.maximum(logits, 0.0) + log2p(tl.exp2(-tl.abs(logits)))
    weight = tl.exp2(logits - loss)
    tl.store(of_rows + row, times * tl.sum(loss, axis=1) / LOG2_E, mask=row < M)
    of_rows += row_part
    tl.store(of_rows + row, times * tl.sum(weight, axis=1), mask=row < M)
    return weight, of_rows + row_part


@triton.jit(do_not_specialize=["M", "N"])
def contrast(
    queries,
    candidates,
    query_ids,
    candidate_ids,
    numbers,
    query_shift,
    candidate_shift,
    query_times,
    weights,
    row_sums,
    column_sums,
    M,
    N,
    E,
    stride_query,
    stride_candidate,
    stride_weights,
    KIND: tl.constexpr,
    COUNTED: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take one tile's sums, and weights for a gradient; KIND as above, ids and E as of `mine`.

    numbers: (2,) float32, scale and bias of the logits.
    query_shift, candidate_shift: (M,), (N,) float32; either side's softmax is exp(logit + shift).
    query_times: (M,) float32, how often each query counts, if COUNTED.
    weights: (M, N) of each score, times UNIT, with `stride_weights` entries a row.
    row_sums, column_sums: (parts, tiles of columns, M) and (parts, tiles of rows, N).
    """
    row_tile, column_tile = tile_of_program(M, N, ROWS, COLUMNS, GROUP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    scores = masked_scores(
        queries, candidates, query_ids, candidate_ids, row, column, M, N, E,
        stride_query, stride_candidate, DEPTH, UPCAST, PRECISION,
    )  # fmt: skip
    scale = tl.load(numbers) * LOG2_E
    row_part = tl.cdiv(N, COLUMNS).to(tl.int64) * M
    column_part = tl.cdiv(M, ROWS).to(tl.int64) * N
    of_rows = row_sums + column_tile.to(tl.int64) * M
    of_columns = column_sums + row_tile.to(tl.int64) * N
    times = tl.full((ROWS,), 1.0, tl.float32)
    if COUNTED:
        times = tl.load(query_times + row, mask=row < M, other=0.0)
    if KIND == "sums":
        add_exponentials(scores, of_rows, row_part, row, M, scale, times, 1, False)
        add_exponentials(scores, of_columns, column_part, column, N, scale, times, 0, COUNTED)
    else:
        factor = tl.full((ROWS,), UNIT, tl.float32)
        if KIND == "softmax":
            weight = softmax_weight(
                scores, scale, query_shift, candidate_shift, times, row, column, M, N, COUNTED
            )
        else:
            factor = times * UNIT
            weight, of_rows = sigmoid_weight(
                scores, scale, numbers, times, of_rows, of_columns, row_part, row, column, M, N
            )
        product = tl.sum(weight * tl.maximum(scores, LOWEST), axis=1)
        tl.store(of_rows + row, product * (factor / UNIT), mask=row < M)
        place = weights + row.to(tl.int64)[:, None] * stride_weights + column[None, :]
        inside = (row < M)[:, None] & (column < N)[None, :]
        tl.store(place, (weight * factor[:, None]).to(weights.dtype.element_ty), mask=inside)
