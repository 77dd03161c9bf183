"""Two 16-bit floats in one 32-bit register: splitting, joining, sorting, in Triton.

Two neighbouring columns of bfloat16 or float16 are one int32. Instructions such as max.NaN.bf16x2
(sm_80 and later) order both at once, so that a network costs half as much per column.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo.lanes import descend, descend_by_assembly


@triton.constexpr_function
def lowest_pair(dtype):
    """Return the bits of two -inf."""
    return -0x7F0080 if dtype == tl.bfloat16 else -0x3FF0400


@triton.jit
def load_columns(source, beside, offset, mask, dtype: tl.constexpr):
    """Load pairs of columns at source + offset, of which a word has none; -inf where masked.

    beside: of the odd columns, as `source` of the even ones. Two sums of addresses take
    multiply-adds; one, and a distance, would take the integer pipe, which is the busiest.
    """
    LOWEST: tl.constexpr = lowest_pair(dtype) >> 16
    even = tl.load(source + offset, mask=mask, other=LOWEST)
    return join_bits(even, tl.load(beside + offset, mask=mask, other=LOWEST))


@triton.jit
def join_bits(even, odd):
    """Return the pairs of two tensors of int16."""
    return (even.to(tl.int32) & 65535) | (odd.to(tl.int32) << 16)


@triton.jit
def store_columns(target, beside, offset, pair, mask):
    """Store pairs as `load_columns`; a column that is both comes twice, with the same bits."""
    tl.store(target + offset, pair.to(tl.int16), mask=mask)
    tl.store(beside + offset, (pair >> 16).to(tl.int16), mask=mask)


@triton.jit
def low_half(pair, dtype: tl.constexpr):
    """Return the even columns in float32."""
    if dtype == tl.bfloat16:
        value = (pair << 16).to(tl.float32, bitcast=True)
    else:
        value = pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def high_half(pair, dtype: tl.constexpr):
    """Return the odd columns in float32."""
    if dtype == tl.bfloat16:
        value = (pair & -65536).to(tl.float32, bitcast=True)
    else:
        value = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def rounded_bits(value, dtype: tl.constexpr):
    """Return the 16 bits of float32 as dtype; the interpreter rounds denormal bfloat16 wrongly."""
    if dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(value != value, 0x7FFF, bits)
    else:
        bits = value.to(dtype).to(tl.int16, bitcast=True).to(tl.int32)
    return bits & 65535


@triton.jit
def round_pair(even, odd, dtype: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Round two float32 tensors to dtype and join them."""
    if ASSEMBLY:  # one instruction; two conversions would take a slow pipe
        kind: tl.constexpr = "bf16x2" if dtype == tl.bfloat16 else "f16x2"
        pair = tl.inline_asm_elementwise(
            "cvt.rn." + kind + ".f32 $0, $1, $2;", "=r,r,r", [odd, even], tl.int32, True, 1
        )
    else:
        pair = rounded_bits(even, dtype) | (rounded_bits(odd, dtype) << 16)
    return pair


@triton.jit
def descend_pairs(
    x, SIZE: tl.constexpr, LANES: tl.constexpr, dtype: tl.constexpr, ASSEMBLY: tl.constexpr
):
    """Sort both halves of SIZE tensors (THREADS,) in descending order; NaN propagates."""
    if ASSEMBLY:
        kind: tl.constexpr = ".NaN.bf16x2" if dtype == tl.bfloat16 else ".NaN.f16x2"
        x = descend_by_assembly(x, SIZE, LANES, kind)
    else:
        even = ()
        odd = ()
        for k in tl.static_range(SIZE):
            even = even + (low_half(x[k], dtype),)
            odd = odd + (high_half(x[k], dtype),)
        even = descend(even, SIZE, LANES)
        odd = descend(odd, SIZE, LANES)
        x = ()
        for k in tl.static_range(SIZE):
            x = x + (round_pair(even[k], odd[k], dtype, False),)
    return x


@triton.jit
def ordered_pair(pair, dtype: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return pairs of 16-bit integers in the order of the floats.

    -0 equals +0, and NaN is the largest: the maximum makes every NaN 0x7FFF, the sum every 0 +0.
    """
    if ASSEMBLY:
        kind: tl.constexpr = "bf16x2" if dtype == tl.bfloat16 else "f16x2"
        one: tl.constexpr = "0x3F803F80" if dtype == tl.bfloat16 else "0x3C003C00"
        pair = tl.inline_asm_elementwise(
            "{ .reg .b32 one, zero; mov.b32 one, " + one + "; mov.b32 zero, 0; "
            "max.NaN." + kind + " $0, $1, $1; fma.rn." + kind + " $0, $0, one, zero; }",
            "=&r,r",
            [pair],
            tl.int32,
            True,
            1,
        )
    else:
        even = low_half(pair, dtype)
        odd = high_half(pair, dtype)
        pair = tl.where(even == 0, pair & -65536, pair)
        pair = tl.where(odd == 0, pair & 65535, pair)
        pair = tl.where(even != even, (pair & -65536) | 0x7FFF, pair)
        pair = tl.where(odd != odd, (pair & 65535) | 0x7FFF0000, pair)
    return pair_of_ordered(pair)


@triton.jit
def pair_of_ordered(pair):
    """Return the pairs of floats whose `ordered_pair` is `pair`; the map is its own inverse."""
    return pair ^ (((pair >> 15) & 0x10001) * 0x7FFF)


@triton.jit
def codes_of(places, ranks, WIDE: tl.constexpr):
    """Return pairs of floats that order by the place, which is last - position, and tell the rank.

    Up to 128 positions, the last is 127, and a code a positive, finite float16. WIDE: up to 256,
    the last is 255, and a code a bfloat16. Of these, 65,281 are numbers or infinite, and no zero is
    negative: as many as 255 place + rank. Of two neighbours that is equal where the lower place has
    rank 255, the higher 0; which of them is which is known from where they end.
    """
    if WIDE:
        code = (places * 255 + ranks + 0x800080) ^ -0x7FFF8000
        negative = (code >> 15) & 0x10001
        code = (code ^ (negative * 0x7FFF)) + negative
    else:
        code = places * 128 + ranks
    return code


@triton.jit
def ranks_of(codes, place, WIDE: tl.constexpr):
    """Return the pairs of ranks in `codes_of`; the place is that of both halves."""
    if WIDE:
        negative = (codes >> 15) & 0x10001
        code = ((codes - negative) ^ (negative * 0x7FFF)) ^ -0x7FFF8000
        ranks = code - place * 0xFF00FF - 0x800080
    else:
        ranks = codes & 0x7F007F
    return ranks
