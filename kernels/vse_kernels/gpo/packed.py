"""Sort-and-weight pooling of 16-bit floats in Triton, two columns per register.

For up to 100 positions; a program sorts with the smallest network that holds its sample.
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
    descend_codes,
    descend_integers,
    descend_pairs,
    high_half,
    low_half,
    ordered_pair,
    pair_of_ordered,
    round_pair,
)
from vse_kernels.gpo.registers import stack, unbind

parts = triton.constexpr_function(choice.parts)


@triton.jit
def pool_pairs(
    source,
    stride_position,
    length,
    weights,
    SIZE: tl.constexpr,
    dtype: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Return the pooled even and odd columns of `source` (COLUMNS,), pointers to pairs.

    length: (COLUMNS,), all alike. A scalar would take the uniform pipe, whose predicates have to be
    copied for every load.
    """
    PARTS: tl.constexpr = parts(SIZE)
    LOWEST: tl.constexpr = -0x7F0080 if dtype == tl.bfloat16 else -0x3FF0400  # -inf, twice
    x = ()
    for p in tl.static_range(len(PARTS)):
        position = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source[None, :] + position.to(tl.int64) * stride_position
        value = tl.load(address, mask=position < length[None, :], other=LOWEST)
        x = x + unbind(value, PARTS[p][1])
    x = descend_pairs(x, SIZE, dtype, ASSEMBLY)
    even = tl.zeros_like(length).to(tl.float32)
    odd = even
    for k in tl.static_range(SIZE):
        # Weights beyond the length may hold anything, and values there are -inf.
        weight = tl.load(weights + k + tl.zeros_like(length), mask=length > k, other=0.0)
        pair = tl.where(length > k, x[k], 0)
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
    COLUMNS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Pool COLUMNS pairs of columns of one sample; strides count pairs.

    SIZES: of networks, ascending; a sample takes the first that holds it.
    ASSEMBLY: use instructions for pairs; the interpreter has none.
    """
    dtype: tl.constexpr = features.dtype.element_ty
    blocks = tl.cdiv(PAIRS, COLUMNS)
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    column = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    size = tl.load(lengths + sample).to(tl.int32)
    length = tl.zeros_like(column) + size
    # Columns beyond the last load it again: a mask of two conditions costs twice as much. The hint
    # keeps neighbours in neighbouring threads; without alignment it allows no vectors.
    source = features.to(tl.pointer_type(tl.int32), bitcast=True) + sample * stride_sample
    source += tl.max_contiguous(tl.minimum(column, PAIRS - 1), COLUMNS)
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = pooled.to(tl.pointer_type(tl.int32), bitcast=True) + sample * PAIRS + column
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else 0)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            even, odd = pool_pairs(
                source, stride_position, length, weights, SIZES[s], dtype, ASSEMBLY
            )
            tl.store(target, round_pair(even, odd, dtype, ASSEMBLY), mask=column < PAIRS)


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
    K,
    PAIRS,
    SIZE: tl.constexpr,
    dtype: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Store the gradients of the first SIZE positions; all but SIZE as in packed_backward.

    Sorts one key per value, (ordered value, 255 - position), then pairs of codes (127 - position,
    rank), which leaves the rank of each position in its place.
    """
    PARTS: tl.constexpr = parts(SIZE)
    LOWEST: tl.constexpr = -0x7F0080 if dtype == tl.bfloat16 else -0x3FF0400  # -inf, twice
    even = ()
    odd = ()
    for p in tl.static_range(len(PARTS)):
        position = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        address = source + position.to(tl.int64) * stride_position
        value = tl.load(address, mask=position < length, other=LOWEST)
        value = ordered_pair(value, dtype, ASSEMBLY)
        even = even + unbind((value << 16) | (255 - position), PARTS[p][1])
        odd = odd + unbind((value & -65536) | (255 - position), PARTS[p][1])
    even = descend_integers(even, SIZE, ASSEMBLY)
    odd = descend_integers(odd, SIZE, ASSEMBLY)

    up_even = tl.where(inside, low_half(upstream, dtype), 0.0)
    up_odd = tl.where(inside, high_half(upstream, dtype), 0.0)
    codes = ()
    for p in tl.static_range(len(PARTS)):
        rank = PARTS[p][0] + tl.arange(0, PARTS[p][1])
        keys = stack(even, PARTS[p][0], PARTS[p][1])
        others = stack(odd, PARTS[p][0], PARTS[p][1])
        value = pair_of_ordered(((keys >> 16) & 65535) | (others & -65536))
        value = tl.where(inside & (rank[:, None] < length), value, 0)
        share = low_half(value, dtype) * up_even + high_half(value, dtype) * up_odd
        tl.store(sums + rank, tl.sum(share, axis=1), mask=rank < K)
        code = (keys & 127) | ((others & 127) << 16)
        codes = codes + unbind(code * 128 + (rank * 65537)[:, None], PARTS[p][1])
    codes = descend_codes(codes, SIZE, ASSEMBLY)

    for p in tl.static_range(len(PARTS)):
        position = PARTS[p][0] + tl.arange(0, PARTS[p][1])[:, None]
        valid = position < length
        code = tl.where(valid, stack(codes, PARTS[p][0], PARTS[p][1]), 0)
        # One flat row keeps each column in its thread; for a tile, the layout pass may choose any
        # order of threads.
        flat = tl.reshape(code, (code.shape[0] * code.shape[1],))
        even_weight = tl.reshape(tl.load(weights + (flat & 127)), code.shape).to(tl.float32)
        odd_weight = tl.reshape(tl.load(weights + ((flat >> 16) & 127)), code.shape).to(tl.float32)
        result = round_pair(even_weight * up_even, odd_weight * up_odd, dtype, ASSEMBLY)
        result = tl.where(valid, result, 0)
        tl.store(target + position.to(tl.int64) * PAIRS, result, mask=inside & (position < K))


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
    COLUMNS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Compute both gradients of COLUMNS pairs of columns of one sample; as packed_forward.

    partial: (B, blocks, K) float32, the gradient of the weights from this program's columns.
    """
    dtype: tl.constexpr = features.dtype.element_ty
    WORD: tl.constexpr = tl.pointer_type(tl.int32)
    blocks = tl.cdiv(PAIRS, COLUMNS)
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    block = program % blocks
    column = (block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = column < PAIRS
    near = tl.max_contiguous(tl.minimum(column, PAIRS - 1), (1, COLUMNS))
    size = tl.load(lengths + sample).to(tl.int32)
    length = tl.zeros_like(column) + size
    source = features.to(WORD, bitcast=True) + sample * stride_sample + near
    upstream = tl.load(gradient.to(WORD, bitcast=True) + sample * PAIRS + near)
    weights = table + tl.load(rows + sample).to(tl.int64) * K
    target = features_gradient.to(WORD, bitcast=True) + sample * K * PAIRS + column
    sums = partial + (sample * blocks + block) * K
    for s in tl.static_range(len(SIZES)):
        above = size > (SIZES[s - 1] if s else 0)
        if above & ((size <= SIZES[s]) if s + 1 < len(SIZES) else above):
            gradients_of_pairs(
                source, stride_position, upstream, length, weights, target, sums, inside, K, PAIRS,
                SIZES[s], dtype, ASSEMBLY,
            )  # fmt: skip
            if s + 1 < len(SIZES):
                for start in range(SIZES[s], K, 8):
                    position = start + tl.arange(0, 8)
                    rest = target + position.to(tl.int64)[:, None] * PAIRS
                    zeros = tl.zeros((8, COLUMNS), tl.int32)
                    tl.store(rest, zeros, mask=inside & (position < K)[:, None])
                    tl.store(sums + position, tl.zeros((8,), tl.float32), mask=position < K)
