"""Hardest negatives in Triton: one pass over tiles of the similarity matrix, none stored.

Each tile reduces its rows and columns to the largest score and merges it by an atomic maximum of
one 64-bit key: the ordered bits of the score above 0x7FFFFFFF - index. A maximum does not depend on
the order of its arguments, so the result is deterministic, and ties go to the lowest index.

The reductions cost as much as the product if they run on the integer pipe. They run in floats: the
maximum first, then its index as the minimum of (maximum - score) * SCALE + position, a fused
multiply-add and a minimum per score. The difference of two unequal floats is at least the spacing
of floats at the maximum, so above SMALLEST the product exceeds every position. Tiles with a maximum
that is NaN, infinite or below SMALLEST are left to a second kernel, which reduces integers of the
same order as the scores. In the first one it would take registers that the product needs.
"""

# Triton types a kernel's parameters when it compiles.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# Floats near SMALLEST are 2**-114 apart: the product is at least 2**13, above every position.
SCALE = tl.constexpr(2.0**127)
SMALLEST = tl.constexpr(2.0**-90)
LARGEST = tl.constexpr(3.4e38)


@triton.jit
def larger(a, b):
    """The larger of two floats; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def ordered_bits(scores, UPCAST: tl.constexpr):
    """Return float32 scores as int32 of the same order; NaN is the largest."""
    if UPCAST:
        scores = tl.where(scores != scores, float("nan"), scores)
    # Sums are never -0 after adding +0, and a NaN that a GPU computes is 0x7FFFFFFF: the largest.
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def record(keys, index, score, partner, which):
    """Merge `score` (ordered bits) and `partner` into the running maximum of `which` indices."""
    key = (score.to(tl.int64) << 32) | (0x7FFFFFFF - partner).to(tl.int64)
    tl.atomic_max(keys + index, key, mask=which, sem="relaxed")


@triton.jit
def record_floats(keys, size, index, scores, first, AXIS: tl.constexpr, UPCAST: tl.constexpr):
    """Merge the largest of `scores` along AXIS, whose positions start at `first`.

    Returns whether any maximum is NaN, +inf or too small, and so is not merged. Neither is -inf.
    """
    if UPCAST:  # the interpreter calls a function of ours entry by entry
        best = tl.max(tl.where(scores != scores, float("inf"), scores), axis=AXIS)
    else:
        best = tl.reduce(scores, AXIS, larger)
    if AXIS == 1:
        position = tl.arange(0, scores.shape[1]).to(tl.float32)[None, :]
    else:
        position = tl.arange(0, scores.shape[0]).to(tl.float32)[:, None]
    far = (tl.expand_dims(best, AXIS) - scores) * SCALE + position
    place = tl.min(far, axis=AXIS)
    # 64 threads hold the same results of 32 columns. A gather leaves each thread one: the keys of
    # all would take 40% of the instructions that follow the product.
    every = tl.arange(0, best.shape[0])
    best = tl.gather(best, every, 0)
    place = tl.gather(place, every, 0).to(tl.int32)
    usual = (tl.abs(best) > SMALLEST) & (best < LARGEST)
    which = (index < size) & usual & (best > float("-inf"))
    record(keys, index, ordered_bits(best, False), first + place, which)
    return tl.min(usual.to(tl.int32), axis=0) == 0


@triton.jit
def record_bits(keys, size, index, bits, other, AXIS: tl.constexpr, LOWEST: tl.constexpr):
    """Merge the largest of ordered `bits` along AXIS, at the first of equals, for any score."""
    best = tl.max(bits, axis=AXIS)
    at_best = bits == tl.expand_dims(best, AXIS)
    found = tl.where(at_best, tl.expand_dims(other, 1 - AXIS), 0x7FFFFFFF)
    record(keys, index, best, tl.min(found, axis=AXIS), (index < size) & (best > LOWEST))


@triton.jit
def tile_of_program(M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Return the row and the column of this program's tile.

    Programs walk GROUP rows of tiles column by column, so that these share candidates in L2.
    """
    per_group = GROUP * tl.cdiv(N, COLUMNS)
    program = tl.program_id(0)
    first = program // per_group * GROUP
    height = min(tl.cdiv(M, ROWS) - first, GROUP)
    return first + program % per_group % height, program % per_group // height


@triton.jit
def load_ids(ids, index, size):
    """Return ids, all padding as -1; what is beyond the matrix counts as padding."""
    return tl.maximum(tl.load(ids + index, mask=index < size, other=-1), -1)


@triton.jit
def masked_scores(
    queries,
    candidates,
    query_ids,
    candidate_ids,
    row,
    column,
    M,
    N,
    E,
    stride_query,
    stride_candidate,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the scores of rows and columns in float32, -inf for equal ids and padding."""
    depth = tl.arange(0, DEPTH)
    left = queries + row.to(tl.int64)[:, None] * stride_query + depth[None, :]
    right = candidates + column.to(tl.int64)[:, None] * stride_candidate + depth[None, :]
    left_inside = (row < M)[:, None]
    right_inside = (column < N)[:, None]
    scores = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for start in range(0, E, DEPTH):
        a = tl.load(left + start, mask=left_inside, other=0.0)
        b = tl.load(right + start, mask=right_inside, other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        scores = tl.dot(a, tl.trans(b), scores, input_precision=PRECISION)
    # Most tiles hold neither equal ids nor padding: their smallest and largest ids show it.
    query_id = load_ids(query_ids, row, M)
    candidate_id = load_ids(candidate_ids, column, N)
    low, high = tl.min(query_id, axis=0), tl.max(query_id, axis=0)
    first, last = tl.min(candidate_id, axis=0), tl.max(candidate_id, axis=0)
    if (tl.minimum(low, first) < 0) | ((low <= last) & (first <= high)):
        # One test covers equal ids (0), padding on one side (negative) and on both (0).
        apart = (query_id[:, None] ^ candidate_id[None, :]) > 0
        scores = tl.where(apart, scores, float("-inf"))
    return scores


@triton.jit(do_not_specialize=["M", "N"])
def mine(
    queries,
    candidates,
    query_ids,
    candidate_ids,
    left_over,
    row_keys,
    column_keys,
    M,
    N,
    E,
    stride_query,
    stride_candidate,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BOTH: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Mine one tile of ROWS x COLUMNS scores; ids are int32, E is a multiple of DEPTH.

    left_over: per program, whether its tile is left to `mine_left_over`.
    BOTH: mine the columns too.
    UPCAST: multiply in float32; the interpreter cannot multiply bfloat16.
    PRECISION: of the product of float32 embeddings.
    """
    # Else the sum is set to zero twice, for a loop that runs and for one that does not.
    tl.assume(E > 0)
    row_tile, column_tile = tile_of_program(M, N, ROWS, COLUMNS, GROUP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    scores = masked_scores(
        queries, candidates, query_ids, candidate_ids, row, column, M, N, E,
        stride_query, stride_candidate, DEPTH, UPCAST, PRECISION,
    )  # fmt: skip
    odd = record_floats(row_keys, M, row, scores, column_tile * COLUMNS, 1, UPCAST)
    if BOTH:
        odd = odd | record_floats(column_keys, N, column, scores, row_tile * ROWS, 0, UPCAST)
    tl.store(left_over + tl.program_id(0), odd)


@triton.jit(do_not_specialize=["M", "N"])
def mine_left_over(
    queries,
    candidates,
    query_ids,
    candidate_ids,
    left_over,
    row_keys,
    column_keys,
    M,
    N,
    E,
    stride_query,
    stride_candidate,
    LOWEST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BOTH: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Mine the tile of a program of `mine` that left it over, in parts of PART columns.

    LOWEST: ordered bits of -inf, the score of a masked pair.
    """
    if tl.load(left_over + tl.program_id(0)) != 0:
        row_tile, column_tile = tile_of_program(M, N, ROWS, COLUMNS, GROUP)
        row = row_tile * ROWS + tl.arange(0, ROWS)
        for start in range(0, COLUMNS, PART):
            column = column_tile * COLUMNS + start + tl.arange(0, PART)
            scores = masked_scores(
                queries, candidates, query_ids, candidate_ids, row, column, M, N, E,
                stride_query, stride_candidate, DEPTH, UPCAST, PRECISION,
            )  # fmt: skip
            bits = ordered_bits(scores, UPCAST)
            record_bits(row_keys, M, row, bits, column, 1, LOWEST)
            if BOTH:
                record_bits(column_keys, N, column, bits, row, 0, LOWEST)
