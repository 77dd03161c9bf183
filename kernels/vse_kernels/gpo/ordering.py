"""Floats as integers in the same order, for Triton kernels that compare, pack and sort."""

# Triton types a kernel's parameters when it compiles.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered_bits(x):
    """Integers int32 in the order of the floats; those of 16-bit floats stay within 16 bits.

    -0 equals +0, and NaN is the largest, as in `torch.sort` and `torch.max`. Integers throughout:
    no rule about denormals applies.
    """
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        bits = tl.where(size == 0, 0, tl.where(size > 0x7F800000, 0x7FFFFFFF, bits))
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    else:
        infinity: tl.constexpr = 0x7F80 if x.dtype == tl.bfloat16 else 0x7C00
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        size = bits & 0x7FFF
        bits = tl.where(size == 0, 0, tl.where(size > infinity, 0x7FFF, bits))
        bits = bits ^ ((bits >> 31) & 0x7FFF)
    return bits


@triton.jit
def ordered_value(bits, dtype: tl.constexpr):
    """The float32 value behind `ordered_bits` of a float of `dtype`."""
    if dtype == tl.float32:
        value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    else:
        short = (bits ^ ((bits >> 31) & 0x7FFF)).to(tl.int16)
        value = short.to(dtype, bitcast=True).to(tl.float32)
    return value
