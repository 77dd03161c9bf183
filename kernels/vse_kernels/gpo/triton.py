"""Sort-and-weight pooling in Triton.

There are two families of kernels. Up to 64 positions, a thread keeps a whole column in registers
and sorts it with an unrolled network; the backward pass sorts again instead of reading an order
from memory. From 65 to 256 positions, a block of columns is sorted across threads, and the
forward pass stores the order, one byte per element, for the backward pass.

Exact, stable orders come from integer keys: the monotonic bits of the value above 255 - position.
-0 equals +0 and NaN is the largest, as in a stable descending torch.sort.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo.ordering import ordered_bits, ordered_value
from vse_kernels.gpo.registers import descend, length_of, locate, stack, unbind


@triton.jit
def sort_key(x, position):
    """Return keys whose descending order is stable: int64 for float32, else int32.

    The low byte is 255 - position: among equal values, the lower position has the larger key.
    """
    bits = ordered_bits(x)
    if x.dtype == tl.float32:
        bits = bits.to(tl.int64)
    return (bits << 8) | (255 - position).to(bits.dtype)


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
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Pool COLUMNS columns of one sample, a value per register, without an order.

    The table is padded to SIZE columns: unmasked weights are loaded at their use, masked ones ahead
    of it, in a register each. PARTS: (start, count) of the tiles that cover SIZE positions.
    """
    sample, _, column = locate(D, COLUMNS)
    inside = column < D
    length = tl.zeros_like(column) + length_of(lengths, sample, K)
    source = features + sample * stride_sample + column[None, :]
    x = ()
    for p in tl.static_range(len(PARTS)):
        position = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        value = tl.load(
            source + position.to(tl.int64) * stride_position,
            mask=inside[None, :] & (position < length[None, :]),
            other=float("-inf"),
        )
        x = x + unbind(value.to(tl.float32), PARTS[p][1])
    x = descend(x, SIZE)
    weights = table + tl.load(rows + sample).to(tl.int64) * SIZE
    total = tl.zeros((COLUMNS,), tl.float32)
    for k in tl.static_range(SIZE):
        weight = tl.load(weights + k).to(tl.float32)
        total += tl.where(length > k, x[k] * weight, 0.0)
    tl.store(pooled + sample * D + column, total.to(pooled.dtype.element_ty), mask=inside)


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
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute both gradients of COLUMNS columns of one sample; PARTS as in network_forward.

    Sorts keys to order the values (for the weights), then sorts positions back to find the rank of
    each (for the features), so that loads and stores stay coalesced.
    """
    sample, block, column = locate(D, COLUMNS)
    column = column[None, :]
    inside = column < D
    length = length_of(lengths, sample, K)
    source = features + sample * stride_sample + column
    upstream = tl.load(gradient + sample * D + column, mask=inside, other=0.0).to(tl.float32)
    x = ()
    for p in tl.static_range(len(PARTS)):
        position = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        value = tl.load(
            source + position.to(tl.int64) * stride_position,
            mask=inside & (position < length),
            other=float("-inf"),
        )
        x = x + unbind(sort_key(value, position), PARTS[p][1])
    x = descend(x, SIZE)

    sums = partial + (sample * tl.cdiv(D, COLUMNS) + block) * K
    ranks = ()
    for p in tl.static_range(len(PARTS)):
        rank = PARTS[p][0] + tl.arange(0, PARTS[p][1])
        key = stack(x, PARTS[p][0], PARTS[p][1])
        value = ordered_value((key >> 8).to(tl.int32), features.dtype.element_ty)
        share = tl.where(inside & (rank[:, None] < length), value * upstream, 0.0)
        tl.store(sums + rank, tl.sum(share, axis=1), mask=rank < K)
        ranks = ranks + unbind(((key & 255).to(tl.int32) << 8) | rank[:, None], PARTS[p][1])
    ranks = descend(ranks, SIZE)

    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = features_gradient + sample * K * D + column
    for p in tl.static_range(len(PARTS)):
        position = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        valid = inside & (position < length)
        rank = tl.where(valid, stack(ranks, PARTS[p][0], PARTS[p][1]) & 255, 0)
        # One flat row keeps each column in its thread; for a tile, the layout pass may choose any
        # order of threads.
        weight = tl.load(weights + tl.reshape(rank, (PARTS[p][1] * COLUMNS,))).to(tl.float32)
        weight = tl.reshape(weight, (PARTS[p][1], COLUMNS))
        result = tl.where(valid, weight * upstream, 0.0)
        tl.store(
            target + position.to(tl.int64) * D,
            result.to(features_gradient.dtype.element_ty),
            mask=inside & (position < K),
        )


@triton.jit
def sort_forward(
    features,
    lengths,
    table,
    rows,
    pooled,
    order,
    K,
    D,
    stride_sample,
    stride_position,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Pool COLUMNS columns of one sample; KEEP also stores the order (B, K, D) uint8."""
    sample, _, column = locate(D, COLUMNS)
    position = tl.arange(0, SIZE)[None, :]
    length = length_of(lengths, sample, K)
    column = column[:, None]
    valid = (column < D) & (position < length)
    offsets = position.to(tl.int64) * stride_position + column
    value = tl.load(features + sample * stride_sample + offsets, mask=valid, other=float("-inf"))
    if KEEP:
        key = tl.sort(sort_key(value, position), dim=1, descending=True)
        kept = 255 - (key & 255).to(tl.int32)
        target = order + sample * K * D + position.to(tl.int64) * D + column
        tl.store(target, kept.to(tl.uint8), mask=valid)
        bits = (key >> 8).to(tl.int32)
    else:
        bits = tl.sort(ordered_bits(value), dim=1, descending=True)
    value = ordered_value(bits, features.dtype.element_ty)
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    weight = tl.load(weights + position, mask=position < length, other=0.0).to(tl.float32)
    total = tl.sum(tl.where(valid, value * weight, 0.0), axis=1)[:, None]
    tl.store(pooled + sample * D + column, total.to(pooled.dtype.element_ty), mask=column < D)


@triton.jit
def sort_backward(
    gradient,
    features,
    lengths,
    table,
    rows,
    order,
    features_gradient,
    partial,
    K,
    D,
    stride_sample,
    stride_position,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute both gradients of COLUMNS columns of one sample from the stored order."""
    sample, block, column = locate(D, COLUMNS)
    position = tl.arange(0, SIZE)[None, :]
    length = length_of(lengths, sample, K)
    column = column[:, None]
    valid = (column < D) & (position < length)
    upstream = tl.load(gradient + sample * D + column, mask=column < D, other=0.0).to(tl.float32)
    offsets = position.to(tl.int64) * D + column
    kept = tl.load(order + sample * K * D + offsets, mask=valid, other=0).to(tl.int32)

    source = features + sample * stride_sample + column
    value = tl.load(source + kept.to(tl.int64) * stride_position, mask=valid, other=0.0)
    share = tl.where(valid, value.to(tl.float32) * upstream, 0.0)
    sums = partial + (sample * tl.cdiv(D, COLUMNS) + block) * K
    rank = tl.arange(0, SIZE)
    tl.store(sums + rank, tl.sum(share, axis=0), mask=rank < K)

    # Sorting (position, rank) pairs inverts the order; positions beyond the length keep theirs.
    pairs = (tl.where(position < length, kept, position) << 8) | position
    ranks = tl.sort(pairs, dim=1) & 255
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    weight = tl.load(weights + ranks, mask=valid, other=0.0).to(tl.float32)
    result = tl.where(valid, weight * upstream, 0.0).to(features_gradient.dtype.element_ty)
    stored = (column < D) & (position < K)
    tl.store(features_gradient + sample * K * D + offsets, result, mask=stored)


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
