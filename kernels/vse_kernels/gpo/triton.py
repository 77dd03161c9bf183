"""Sort-and-weight pooling in Triton, one column per register.

A thread keeps a column, or a part of one, in registers and sorts it with an unrolled network; the
backward pass sorts again instead of reading an order from memory. packed.py has the same kernels
for two 16-bit columns per register; float32 takes these, and the backward pass of many positions.

The backward pass sorts the keys of keys.py, for the exact, stable order of torch.sort.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo import choice
from vse_kernels.gpo.keys import descend_keys, place_of_key, sort_key, value_of_key
from vse_kernels.gpo.lanes import (
    descend_floats,
    descend_integers,
    locate_lanes,
    over_columns,
    over_lanes,
    weights_at,
)
from vse_kernels.gpo.registers import length_of, stack, unbind

parts = triton.constexpr_function(choice.parts)


@triton.jit
def pool_columns(
    source,
    stride_position,
    length,
    weights,
    first,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Return the pooled columns (threads,), or a lane's part of the sum; as `pool_pairs`."""
    PARTS: tl.constexpr = parts(SIZE)
    left = length - first
    source += first.to(tl.int64) * stride_position
    weights += first
    x = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source[None, :] + row.to(tl.int64) * stride_position
        value = tl.load(address, mask=row < left[None, :], other=float("-inf"))
        x = x + unbind(value.to(tl.float32), PARTS[p][1])
    x = descend_floats(x, SIZE, LANES, ASSEMBLY)
    total = tl.zeros_like(length).to(tl.float32)
    for k in tl.static_range(SIZE):
        # Weights beyond the length may hold anything, and values there are -inf.
        weight = tl.load(weights + k, mask=left > k, other=0.0)
        total += tl.where(left > k, x[k], 0.0) * weight.to(tl.float32)
    return total


# A thread owns one column and loads no vectors, so alignment brings nothing but more variants.
UNALIGNED = ("gradient", "features", "pooled", "features_gradient", "K", "D")
UNALIGNED += ("stride_sample", "stride_position")


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def network_forward(
    features,
    lengths,
    table,
    rows,
    pooled,
    K,
    D,
    stride_sample,
    stride_position,
    SIZES: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Pool COLUMNS columns of one sample, without an order.

    SIZES: of networks, ascending; a sample takes the first that holds it. With several LANES, each
    has one network's positions.
    ASSEMBLY: the networks are PTX; the interpreter has none.
    """
    sample, _, column, part = locate_lanes(D, COLUMNS, LANES)
    size = length_of(lengths, sample, K)
    length = tl.zeros_like(column) + size
    # Columns beyond the last load it again: a mask of two conditions costs twice as much.
    near = tl.max_contiguous(tl.minimum(column, D - 1), COLUMNS * LANES)
    source = features + sample * stride_sample + near
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = pooled + sample * D + column
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else -1)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            total = pool_columns(
                source, stride_position, length, weights, part * SIZES[s], SIZES[s], LANES, ASSEMBLY
            )
            total = over_lanes(total, COLUMNS, LANES).to(pooled.dtype.element_ty)
            tl.store(target, total, mask=(column < D) & (part == 0))


@triton.jit
def gradients_of_columns(
    source,
    stride_position,
    upstream,
    length,
    weights,
    target,
    sums,
    inside,
    first,
    K,
    D,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    dtype: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Store the gradients of SIZE positions of each lane; all but these as in network_backward.

    Sorts one key per value, then (place, rank), which leaves the rank of each position in its
    place, so that loads and stores stay coalesced. first: of the positions, and then ranks, that
    are a lane's.
    """
    PARTS: tl.constexpr = parts(SIZE)
    LAST: tl.constexpr = 511  # 9 bits hold a place or a rank
    left = length - first
    source += first.to(tl.int64) * stride_position
    target += first.to(tl.int64) * D
    stored = tl.where(inside, K - first, 0)
    keys = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source + row.to(tl.int64) * stride_position
        value = tl.load(address, mask=row < left, other=float("-inf"))
        keys = keys + unbind(sort_key(value, LAST - first - row, ASSEMBLY), PARTS[p][1])
    keys = descend_keys(keys, SIZE, LANES, ASSEMBLY)

    codes = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        key = stack(keys, PARTS[p][0], PARTS[p][1])
        # The product, not the value: 0 times an infinite gradient is NaN.
        share = tl.where(row < left, value_of_key(key, dtype) * upstream, 0.0)
        summed = row + (tl.arange(0, LANES) * SIZE)[None, :]
        tl.store(sums + summed, over_columns(share, COLUMNS, LANES), mask=summed < K)
        codes = codes + unbind((place_of_key(key, dtype) << 9) | (first + row), PARTS[p][1])
    codes = descend_integers(codes, SIZE, LANES, ASSEMBLY)

    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        rank = stack(codes, PARTS[p][0], PARTS[p][1]) & LAST
        weight = weights_at(weights, tl.where(row < left, rank, 0))
        result = tl.where(row < left, weight * upstream, 0.0)
        tl.store(target + row.to(tl.int64) * D, result.to(dtype), mask=row < stored)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def network_backward(
    gradient,
    features,
    lengths,
    table,
    rows,
    features_gradient,
    partial,
    K,
    D,
    stride_sample,
    stride_position,
    SIZES: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Compute both gradients of COLUMNS columns of one sample; as network_forward.

    partial: (B, blocks, K) float32, the gradient of the weights from this program's columns.
    """
    dtype: tl.constexpr = features.dtype.element_ty
    sample, block, column, part = locate_lanes(D, COLUMNS, LANES)
    column = column[None, :]
    part = part[None, :]
    inside = column < D
    near = tl.max_contiguous(tl.minimum(column, D - 1), (1, COLUMNS * LANES))
    size = length_of(lengths, sample, K)
    # Columns beyond the last have no positions: one condition for every mask.
    length = tl.where(inside, size, 0)
    source = features + sample * stride_sample + near
    upstream = tl.load(gradient + sample * D + near).to(tl.float32)
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = features_gradient + sample * K * D + column
    sums = partial + (sample * tl.cdiv(D, COLUMNS) + block) * K
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else -1)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            gradients_of_columns(
                source, stride_position, upstream, length, weights, target, sums, inside,
                part * SIZES[s], K, D, SIZES[s], LANES, COLUMNS, dtype, ASSEMBLY,
            )  # fmt: skip
            if s + 1 < len(SIZES):
                for start in range(SIZES[s], K, 8):
                    position = start + tl.arange(0, 8)
                    rest = target + position.to(tl.int64)[:, None] * D
                    zeros = tl.zeros((8, COLUMNS), dtype)
                    tl.store(rest, zeros, mask=inside & (position < K)[:, None])
                    tl.store(sums + position, tl.zeros((8,), tl.float32), mask=position < K)


@triton.jit
def reduce_rows(
    sums,
    rows,
    table_gradient,
    B,
    K,
    SAMPLES: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Sum the rows of sums (B, K) that use one row of the table, in a fixed order."""
    row = tl.program_id(0)
    position = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    total = tl.zeros((POSITIONS,), tl.float32)
    for start in range(0, B, SAMPLES):
        sample = start + tl.arange(0, SAMPLES)
        own = tl.load(rows + sample, mask=sample < B, other=-1).to(tl.int32) == row
        source = sums + sample.to(tl.int64)[:, None] * K + position[None, :]
        total += tl.sum(tl.load(source, mask=own[:, None] & (position < K)[None, :], other=0.0), 0)
    target = table_gradient + row.to(tl.int64) * K + position
    tl.store(target, total.to(table_gradient.dtype.element_ty), mask=position < K)
