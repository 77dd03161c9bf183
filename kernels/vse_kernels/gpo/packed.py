"""Sort-and-weight pooling of 16-bit floats in Triton, two columns per register.

An odd width has as many pairs as the next even one: the last column is both columns of its pair.
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
    join_bits,
    load_columns,
    low_half,
    lowest_pair,
    ordered_pair,
    pair_of_ordered,
    ranks_of,
    round_pair,
    store_columns,
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
    beside,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    dtype: tl.constexpr,
    WORDS: tl.constexpr,
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
        if WORDS:
            value = tl.load(address, mask=row < left[None, :], other=LOWEST)
        else:
            offset = row.to(tl.int64) * stride_position
            other = (source + beside)[None, :]
            value = load_columns(source[None, :], other, offset, row < left[None, :], dtype)
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


@triton.jit
def column_of_pair(column, PAIRS, WORDS: tl.constexpr):
    """Return the offset of pairs in memory, that of the other column, and the offset of a row.

    In words, or in columns of an odd width, whose last pair is the last column, twice.
    """
    if WORDS:
        offset = column
        beside = 0
        width = PAIRS
    else:
        offset = 2 * column
        beside = (column < PAIRS - 1).to(tl.int32)
        width = 2 * PAIRS - 1
    return offset, beside, width


# Columns are pairs, of no known alignment beyond their own, and a thread loads no vectors.
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
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Pool COLUMNS pairs of columns of one sample.

    WORDS: each pair is an aligned word of 32 bits, and strides count these. Else they count
    columns, whose number is 2 PAIRS - 1.
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
    UNIT: tl.constexpr = tl.pointer_type(tl.int32 if WORDS else tl.int16)
    source = features.to(UNIT, bitcast=True) + sample * stride_sample
    near = tl.max_contiguous(tl.minimum(column, PAIRS - 1), COLUMNS * LANES)
    offset, beside, width = column_of_pair(near, PAIRS, WORDS)
    source += offset
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    offset, _, _ = column_of_pair(column, PAIRS, WORDS)
    target = pooled.to(UNIT, bitcast=True) + sample * width + offset
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else -1)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            even, odd = pool_pairs(
                source, stride_position, length, weights, part * SIZES[s], beside, SIZES[s], LANES,
                dtype, WORDS, ASSEMBLY,
            )  # fmt: skip
            pair = round_pair(
                over_lanes(even, COLUMNS, LANES), over_lanes(odd, COLUMNS, LANES), dtype, ASSEMBLY
            )
            mask = (column < PAIRS) & (part == 0)
            if WORDS:
                tl.store(target, pair, mask=mask)
            else:
                store_columns(target, target + beside, 0, pair, mask)


@triton.constexpr_function
def last_position(size, lanes):
    """Return the last position that keys and codes tell apart; above 128 all take wide codes."""
    return 255 if size * lanes > 128 else 127


@triton.jit
def sorted_keys(
    source,
    stride_position,
    beside,
    left,
    first,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    dtype: tl.constexpr,
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Load pairs; return the keys of even and of odd columns, (ordered value, last - position).

    first: as in pool_pairs, and the rest as in gradients_of_pairs.
    """
    PARTS: tl.constexpr = parts(SIZE)
    LAST: tl.constexpr = last_position(SIZE, LANES)
    LOWEST: tl.constexpr = lowest_pair(dtype)
    even = ()
    odd = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source + row.to(tl.int64) * stride_position
        if WORDS:
            value = tl.load(address, mask=row < left, other=LOWEST)
        else:
            offset = row.to(tl.int64) * stride_position
            value = load_columns(source, source + beside, offset, row < left, dtype)
        value = ordered_pair(value, dtype, ASSEMBLY)
        even = even + unbind((value << 16) | (LAST - first - row), PARTS[p][1])
        odd = odd + unbind((value & -65536) | (LAST - first - row), PARTS[p][1])
    even = descend_integers(even, SIZE, LANES, ASSEMBLY)
    odd = descend_integers(odd, SIZE, LANES, ASSEMBLY)
    return even, odd


@triton.jit
def ranks_in_place(
    even,
    odd,
    to_even,
    to_odd,
    left,
    first,
    sums,
    K,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    dtype: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Store the sums of the weights' gradients; return each position's ranks, as codes.

    Sorts pairs of codes of (last - position, rank), which leaves the ranks in their places.
    to_even, to_odd: gradients by which the values count.
    """
    PARTS: tl.constexpr = parts(SIZE)
    WIDE: tl.constexpr = last_position(SIZE, LANES) > 127
    codes = ()
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        keys = stack(even, PARTS[p][0], PARTS[p][1])
        others = stack(odd, PARTS[p][0], PARTS[p][1])
        value = pair_of_ordered(((keys >> 16) & 65535) | (others & -65536))
        share = low_half(value, dtype) * to_even + high_half(value, dtype) * to_odd
        # The product, not the value: 0 times an infinite gradient is NaN.
        share = tl.where(row < left, share, 0.0)
        summed = row + (tl.arange(0, LANES) * SIZE)[None, :]
        tl.store(sums + summed, over_columns(share, COLUMNS, LANES), mask=summed < K)
        ranks = row * 0x10001 + first * 0x10001
        codes = codes + unbind(codes_of((keys & 65535) | (others << 16), ranks, WIDE), PARTS[p][1])
    return descend_pairs(codes, SIZE, LANES, tl.bfloat16 if WIDE else tl.float16, ASSEMBLY)


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
    beside,
    K,
    width,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    dtype: tl.constexpr,
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Store the gradients of SIZE positions of each lane; all but these as in packed_backward."""
    PARTS: tl.constexpr = parts(SIZE)
    LAST: tl.constexpr = last_position(SIZE, LANES)
    WIDE: tl.constexpr = LAST > 127
    left = length - first
    source += first.to(tl.int64) * stride_position
    target += first.to(tl.int64) * width
    stored = tl.where(inside, K - first, 0)
    even, odd = sorted_keys(
        source, stride_position, beside, left, first, SIZE, LANES, dtype, WORDS, ASSEMBLY
    )
    up_even = low_half(upstream, dtype)
    up_odd = high_half(upstream, dtype)
    to_even = up_even
    to_odd = up_odd
    if not WORDS:  # a column that is both of a pair counts half twice, which is exact
        to_even = up_even * tl.where(beside > 0, 1.0, 0.5)
        to_odd = up_odd * tl.where(beside > 0, 1.0, 0.5)
    codes = ranks_in_place(
        even, odd, to_even, to_odd, left, first, sums, K, SIZE, LANES, COLUMNS, dtype, ASSEMBLY
    )
    for p in tl.static_range(len(PARTS)):
        row = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        rank = ranks_of(stack(codes, PARTS[p][0], PARTS[p][1]), LAST - first - row, WIDE)
        rank = tl.where(row < left, rank, 0)
        even_weight = weights_at(weights, rank & 65535)
        odd_weight = weights_at(weights, rank >> 16)
        result = round_pair(even_weight * up_even, odd_weight * up_odd, dtype, ASSEMBLY)
        result = tl.where(row < left, result, 0)
        if WORDS:
            tl.store(target + row.to(tl.int64) * width, result, mask=row < stored)
        else:
            offset = row.to(tl.int64) * width
            store_columns(target, target + beside, offset, result, row < stored)


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
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Compute both gradients of COLUMNS pairs of columns of one sample; as packed_forward.

    partial: (B, blocks, K) float32, the gradient of the weights from this program's columns.
    """
    dtype: tl.constexpr = features.dtype.element_ty
    UNIT: tl.constexpr = tl.pointer_type(tl.int32 if WORDS else tl.int16)
    sample, block, column, part = locate_lanes(PAIRS, COLUMNS, LANES)
    column = column[None, :]
    part = part[None, :]
    inside = column < PAIRS
    near = tl.max_contiguous(tl.minimum(column, PAIRS - 1), (1, COLUMNS * LANES))
    size = length_of(lengths, sample, K)
    # Columns beyond the last have no positions: one condition for every mask.
    length = tl.where(inside, size, 0)
    offset, beside, width = column_of_pair(near, PAIRS, WORDS)
    source = features.to(UNIT, bitcast=True) + sample * stride_sample + offset
    above = gradient.to(UNIT, bitcast=True) + sample * width + offset
    upstream = tl.load(above)
    if not WORDS:
        upstream = join_bits(upstream, tl.load(above + beside))
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    offset, _, _ = column_of_pair(column, PAIRS, WORDS)
    target = features_gradient.to(UNIT, bitcast=True) + sample * K * width + offset
    sums = partial + (sample * tl.cdiv(PAIRS, COLUMNS) + block) * K
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else -1)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            gradients_of_pairs(
                source, stride_position, upstream, length, weights, target, sums, inside,
                part * SIZES[s], beside, K, width, SIZES[s], LANES, COLUMNS, dtype, WORDS, ASSEMBLY,
            )  # fmt: skip
            if s + 1 < len(SIZES):
                for start in range(SIZES[s], K, 8):
                    position = start + tl.arange(0, 8)
                    rest = target + position.to(tl.int64)[:, None] * width
                    zeros = tl.zeros((8, COLUMNS), tl.int32)
                    left = inside & (position < K)[:, None]
                    if WORDS:
                        tl.store(rest, zeros, mask=left)
                    else:
                        store_columns(rest, rest + beside, 0, zeros, left)
                    tl.store(sums + position, tl.zeros((8,), tl.float32), mask=position < K)
