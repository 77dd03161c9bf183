"""Hinges over all violating negatives in Triton: a strip of the similarity matrix at a time.

A tile's scores are computed once, and both sides' hinges taken from them. What leaves the tile is
how often each score violates, a small whole number that 16 bits hold exactly: the gradients are its
products with the embeddings, which the matrix library multiplies. Sums leave it for each tile
apart, so that they are added in the same order every time.
"""

# Triton types a kernel's parameters when it compiles.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.hardest.triton import masked_scores, tile_of_program


@triton.jit
def times_of(thresholds, index, size, POSITIVES: tl.constexpr):
    """Return how often each row of `index` counts for the other side: its positives, less padding.

    thresholds: (size, POSITIVES), infinite for padding. The padding of a row's only positive is
    told by its id, and has no scores.
    """
    if POSITIVES == 1:
        return tl.full(index.shape, 1.0, tl.float32)
    times = tl.zeros(index.shape, tl.float32)
    for number in tl.static_range(POSITIVES):
        place = thresholds + index.to(tl.int64) * POSITIVES + number
        threshold = tl.load(place, mask=index < size, other=float("inf"))
        times += (threshold < float("inf")).to(tl.float32)
    return times


@triton.jit
def add_side(
    scores,
    thresholds,
    limits,
    loss,
    count,
    index,
    size,
    times,
    AXIS: tl.constexpr,
    POSITIVES: tl.constexpr,
    LIMITED: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Store the sums of one side's hinges along AXIS; return the violations of each score.

    thresholds, limits, loss, count: (size, POSITIVES) of the side.
    times: how often each entry along AXIS counts, if WEIGHTED.
    """
    violations = tl.zeros(scores.shape, tl.float32)
    inside = index < size
    for number in tl.static_range(POSITIVES):
        place = index.to(tl.int64) * POSITIVES + number
        threshold = tl.load(thresholds + place, mask=inside, other=float("inf"))
        over = scores - tl.expand_dims(threshold, AXIS)
        hinge = tl.where(over <= 0, 0.0, over)  # NaN stays, as in torch
        if LIMITED:
            limit = tl.load(limits + place, mask=inside, other=float("inf"))
            hinge = tl.where(scores > tl.expand_dims(limit, AXIS), 0.0, hinge)
        counted = (hinge > 0).to(tl.float32)
        if WEIGHTED:
            hinge = hinge * tl.expand_dims(times, 1 - AXIS)
            counted = counted * tl.expand_dims(times, 1 - AXIS)
        violations += counted
        tl.store(loss + place, tl.sum(hinge, axis=AXIS), mask=inside)
        tl.store(count + place, tl.sum(counted, axis=AXIS).to(tl.int32), mask=inside)
    return violations


@triton.jit(do_not_specialize=["M", "N"])
def violate(
    queries,
    candidates,
    query_ids,
    candidate_ids,
    query_thresholds,
    candidate_thresholds,
    query_limits,
    candidate_limits,
    pull,
    row_loss,
    row_count,
    column_loss,
    column_count,
    M,
    N,
    E,
    stride_query,
    stride_candidate,
    stride_pull,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    POSITIVES: tl.constexpr,
    QUERY_LIMITED: tl.constexpr,
    CANDIDATE_LIMITED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take both sides' hinges of one tile of ROWS x COLUMNS scores; ids and E as of `mine`.

    query_thresholds: (M, POSITIVES) float32, of positives less the margin.
    candidate_thresholds: (N,) likewise.
    query_limits, candidate_limits: as these, where limited.
    pull: (M, N) violations of each score by either side, with `stride_pull` entries a row.
    row_loss, row_count: (tiles of columns, M, POSITIVES) sums of each tile.
    column_loss, column_count: (tiles of rows, N) likewise.
    """
    row_tile, column_tile = tile_of_program(M, N, ROWS, COLUMNS, GROUP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    scores = masked_scores(
        queries, candidates, query_ids, candidate_ids, row, column, M, N, E,
        stride_query, stride_candidate, DEPTH, UPCAST, PRECISION,
    )  # fmt: skip
    of_row = column_tile.to(tl.int64) * M * POSITIVES
    of_column = row_tile.to(tl.int64) * N
    violations = add_side(
        scores, query_thresholds, query_limits, row_loss + of_row, row_count + of_row,
        row, M, times_of(candidate_thresholds, column, N, 1), 1, POSITIVES, QUERY_LIMITED, False,
    )  # fmt: skip
    violations += add_side(
        scores, candidate_thresholds, candidate_limits, column_loss + of_column,
        column_count + of_column, column, N, times_of(query_thresholds, row, M, POSITIVES),
        0, 1, CANDIDATE_LIMITED, POSITIVES > 1,
    )  # fmt: skip
    place = pull + row.to(tl.int64)[:, None] * stride_pull + column[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    tl.store(place, violations.to(pull.dtype.element_ty), mask=inside)
