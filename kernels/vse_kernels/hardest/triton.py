"""Hardest negatives in Triton: one pass over tiles of the similarity matrix, none stored.

Each tile reduces its rows and columns to the largest score and merges it by an atomic maximum of
one 64-bit key: the ordered bits of the score above 0x7FFFFFFF - index. A maximum does not depend on
the order of its arguments, so the result is deterministic, and ties go to the lowest index.
"""

# Triton types a kernel's parameters when it compiles.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def record(keys, size, index, score, partner, LOWEST: tl.constexpr):
    """Merge `score` (ordered bits) and `partner` into the running maximum of each `index`."""
    key = (score.to(tl.int64) << 32) | (0x7FFFFFFF - partner).to(tl.int64)
    tl.atomic_max(keys + index, key, mask=(index < size) & (score > LOWEST), sem="relaxed")


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
def ordered_bits(scores, apart, LOWEST: tl.constexpr, UPCAST: tl.constexpr):
    """Return float32 scores as int32 of the same order; LOWEST where ``apart`` is false."""
    if UPCAST:
        scores = tl.where(scores != scores, float("nan"), scores)
    # Sums are never -0 after adding +0, and a NaN that a GPU computes is 0x7FFFFFFF: the largest.
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return tl.where(apart, bits ^ ((bits >> 31) & 0x7FFFFFFF), LOWEST)


@triton.jit
def mine(
    queries,
    candidates,
    query_ids,
    candidate_ids,
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
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE: tl.constexpr,
    BOTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Mine one tile of ROWS x COLUMNS scores; ids are int32.

    LOWEST: ordered bits of -inf, the score of a masked pair.
    WHOLE: E is a multiple of DEPTH.
    BOTH: mine the columns too.
    UPCAST: multiply in float32; the interpreter cannot multiply bfloat16.
    """
    row_tile, column_tile = tile_of_program(M, N, ROWS, COLUMNS, GROUP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    left = queries + row.to(tl.int64)[:, None] * stride_query + depth[None, :]
    right = candidates + column.to(tl.int64)[:, None] * stride_candidate + depth[None, :]
    left_inside = (row < M)[:, None]
    right_inside = (column < N)[:, None]
    scores = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, E, DEPTH):
        if WHOLE:
            a = tl.load(left + start, mask=left_inside, other=0.0)
            b = tl.load(right + start, mask=right_inside, other=0.0)
        else:
            within = (depth + start < E)[None, :]
            a = tl.load(left + start, mask=left_inside & within, other=0.0)
            b = tl.load(right + start, mask=right_inside & within, other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        scores = tl.dot(a, tl.trans(b), scores, input_precision="ieee")

    # Rows and columns beyond the matrix count as padding. With -1 for all padding, one test covers
    # equal ids (0), padding on one side (negative) and on both (0).
    query_id = tl.maximum(tl.load(query_ids + row, mask=row < M, other=-1), -1)
    candidate_id = tl.maximum(tl.load(candidate_ids + column, mask=column < N, other=-1), -1)
    apart = (query_id[:, None] ^ candidate_id[None, :]) > 0
    ordered = ordered_bits(scores, apart, LOWEST, UPCAST)
    # First the maximum, then its index: half the instructions of a reduction that carries the index
    # along at every step.
    best = tl.max(ordered, axis=1)
    found = tl.where(ordered == best[:, None], column[None, :], 0x7FFFFFFF)
    record(row_keys, M, row, best, tl.min(found, axis=1), LOWEST)
    if BOTH:
        best = tl.max(ordered, axis=0)
        found = tl.where(ordered == best[None, :], row[:, None], 0x7FFFFFFF)
        record(column_keys, N, column, best, tl.min(found, axis=0), LOWEST)
