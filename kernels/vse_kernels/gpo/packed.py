"""Sort-and-weight pooling of 16-bit floats in Triton, two columns per register.

Few positions are sorted by one lane, with the smallest network that holds the sample; many by
several lanes of a warp, each with as many of them.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo import choice
from vse_kernels.gpo.halves import (
    codes_of,
    descend_pairs,
    high_half,
    low_half,
    lowest_pair,
    ordered_pair,
    pair_of_ordered,
    ranks_of,
    round_pair,
)
from vse_kernels.gpo.lanes import (
    descend_integers,
    locate_lanes,
    over_columns,
    over_lanes,
    weights_at,
)
from vse_kernels.gpo.registers import length_of, stack, unbind

parts = triton.constexpr_function(choice.parts)


@triton.jit
def pool_pairs(
    source,
    stride_position,
    length,
    weights,
    first,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    dtype: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Return the pooled even and odd columns of `source` (threads,), pointers to pairs.

    length: (threads,), all alike. A scalar would take the uniform pipe, whose predicates have to be
    copied for every load.
    first: (threads,), of the SIZE positions and then ranks that are a lane's.
    """
    PARTS: tl.constexpr = parts(SIZE)
    LOWEST: tl.constexpr = lowest_pair(dtype)
    left = length - first
    source += first.to(tl.int64) * stride_position
    weights += first
    x = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source[None, :] + row.to(tl.int64) * stride_position
        value = tl.load(address, mask=row < left[None, :], other=LOWEST)
        x = x + unbind(value, PARTS[p][1])
    x = descend_pairs(x, SIZE, LANES, dtype, ASSEMBLY)
    even = tl.zeros_like(length).to(tl.float32)
    odd = even
    for k in tl.static_range(SIZE):
        # Weights beyond the length may hold anything, and values there are -inf.
        weight = tl.load(weights + k, mask=left > k, other=0.0)
        pair = tl.where(left > k, x[k], 0)
        even += low_half(pair, dtype) * weight.to(tl.float32)
        odd += high_half(pair, dtype) * weight.to(tl.float32)
    return even, odd


# Columns are pairs: their addresses are multiples of 4 bytes, and a thread loads no vectors.
UNALIGNED = ("gradient", "features", "pooled", "features_gradient", "K", "PAIRS")
UNALIGNED += ("stride_sample", "stride_position")


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def packed_forward(
    features,
    lengths,
    table,
    rows,
    pooled,
    K,
    PAIRS,
    stride_sample,
    stride_position,
    SIZES: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Pool COLUMNS pairs of columns of one sample; strides count pairs.

    SIZES: of networks, ascending; a sample takes the first that holds it. With several LANES, each
    has one network's positions.
    ASSEMBLY: use instructions for pairs; the interpreter has none.
    """
    dtype: tl.constexpr = features.dtype.element_ty
    sample, _, column, part = locate_lanes(PAIRS, COLUMNS, LANES)
    size = length_of(lengths, sample, K)
    length = tl.zeros_like(column) + size
    # Columns beyond the last load it again: a mask of two conditions costs twice as much. The hint
    # keeps neighbours in neighbouring threads; without alignment it allows no vectors.
    source = features.to(tl.pointer_type(tl.int32), bitcast=True) + sample * stride_sample
    source += tl.max_contiguous(tl.minimum(column, PAIRS - 1), COLUMNS * LANES)
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = pooled.to(tl.pointer_type(tl.int32), bitcast=True) + sample * PAIRS + column
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else -1)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            even, odd = pool_pairs(
                source, stride_position, length, weights, part * SIZES[s], SIZES[s], LANES, dtype,
                ASSEMBLY,
            )  # fmt: skip
            pair = round_pair(
                over_lanes(even, COLUMNS, LANES), over_lanes(odd, COLUMNS, LANES), dtype, ASSEMBLY
            )
            tl.store(target, pair, mask=(column < PAIRS) & (part == 0))


@triton.jit
def gradients_of_pairs(
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
    PAIRS,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    dtype: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Store the gradients of SIZE positions of each lane; all but these as in packed_backward.

    Sorts one key per value, (ordered value, last - position), then pairs of codes of (last -
    position, rank), which leaves the rank of each position in its place. first: as in pool_pairs.
    """
    PARTS: tl.constexpr = parts(SIZE)
    WIDE: tl.constexpr = SIZE * LANES > 128
    LAST: tl.constexpr = 255 if WIDE else 127
    left = length - first
    source += first.to(tl.int64) * stride_position
    target += first.to(tl.int64) * PAIRS
    stored = tl.where(inside, K - first, 0)
    LOWEST: tl.constexpr = lowest_pair(dtype)
    even = ()
    odd = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source + row.to(tl.int64) * stride_position
        value = tl.load(address, mask=row < left, other=LOWEST)
        value = ordered_pair(value, dtype, ASSEMBLY)
        even = even + unbind((value << 16) | (LAST - first - row), PARTS[p][1])
        odd = odd + unbind((value & -65536) | (LAST - first - row), PARTS[p][1])
    even = descend_integers(even, SIZE, LANES, ASSEMBLY)
    odd = descend_integers(odd, SIZE, LANES, ASSEMBLY)

    up_even = low_half(upstream, dtype)
    up_odd = high_half(upstream, dtype)
    codes = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        keys = stack(even, PARTS[p][0], PARTS[p][1])
        others = stack(odd, PARTS[p][0], PARTS[p][1])
        value = pair_of_ordered(((keys >> 16) & 65535) | (others & -65536))
        share = low_half(value, dtype) * up_even + high_half(value, dtype) * up_odd
        # The product, not the value: 0 times an infinite gradient is NaN.
        share = tl.where(row < left, share, 0.0)
        summed = row + (tl.arange(0, LANES) * SIZE)[None, :]
        tl.store(sums + summed, over_columns(share, COLUMNS, LANES), mask=summed < K)
        ranks = row * 0x10001 + first * 0x10001
        codes = codes + unbind(codes_of((keys & 65535) | (others << 16), ranks, WIDE), PARTS[p][1])
    codes = descend_pairs(codes, SIZE, LANES, tl.bfloat16 if WIDE else tl.float16, ASSEMBLY)

    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        rank = ranks_of(stack(codes, PARTS[p][0], PARTS[p][1]), LAST - first - row, WIDE)
        rank = tl.where(row < left, rank, 0)
        even_weight = weights_at(weights, rank & 65535)
        odd_weight = weights_at(weights, rank >> 16)
        result = round_pair(even_weight * up_even, odd_weight * up_odd, dtype, ASSEMBLY)
        result = tl.where(row < left, result, 0)
        tl.store(target + row.to(tl.int64) * PAIRS, result, mask=row < stored)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def packed_backward(
    gradient,
    features,
    lengths,
    table,
    rows,
    features_gradient,
    partial,
    K,
    PAIRS,
    stride_sample,
    stride_position,
    SIZES: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Compute both gradients of COLUMNS pairs of columns of one sample; as packed_forward.

    partial: (B, blocks, K) float32, the gradient of the weights from this program's columns.
    """
    dtype: tl.constexpr = features.dtype.element_ty
    WORD: tl.constexpr = tl.pointer_type(tl.int32)
    sample, block, column, part = locate_lanes(PAIRS, COLUMNS, LANES)
    column = column[None, :]
    part = part[None, :]
    inside = column < PAIRS
    near = tl.max_contiguous(tl.minimum(column, PAIRS - 1), (1, COLUMNS * LANES))
    size = length_of(lengths, sample, K)
    # Columns beyond the last have no positions: one condition for every mask.
    length = tl.where(inside, size, 0)
    source = features.to(WORD, bitcast=True) + sample * stride_sample + near
    upstream = tl.load(gradient.to(WORD, bitcast=True) + sample * PAIRS + near)
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = features_gradient.to(WORD, bitcast=True) + sample * K * PAIRS + column
    sums = partial + (sample * tl.cdiv(PAIRS, COLUMNS) + block) * K
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else -1)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            gradients_of_pairs(
                source, stride_position, upstream, length, weights, target, sums, inside,
                part * SIZES[s], K, PAIRS, SIZES[s], LANES, COLUMNS, dtype, ASSEMBLY,
            )  # fmt: skip
            if s + 1 < len(SIZES):
                for start in range(SIZES[s], K, 8):
                    position = start + tl.arange(0, 8)
                    rest = target + position.to(tl.int64)[:, None] * PAIRS
                    zeros = tl.zeros((8, COLUMNS), tl.int32)
                    tl.store(rest, zeros, mask=inside & (position < K)[:, None])
                    tl.store(sums + position, tl.zeros((8,), tl.float32), mask=position < K)
