"""Order-preserving conversion of floats to integers, for Triton kernels that sort packed keys."""

# Triton types a kernel's parameters when it compiles.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered_bits(x):
    """Return int32 integers in the order of the floats; 16-bit floats give 16 bits.

    -0 equals +0, and NaN is the largest, as in `torch.sort` and `torch.max`. All steps are integer
    operations, so flushing of denormals has no effect.
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
    """Return the float32 value whose `ordered_bits`, as `dtype`, are `bits`."""
    if dtype == tl.float32:
        value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    else:
        short = (bits ^ ((bits >> 31) & 0x7FFF)).to(tl.int16)
        value = short.to(dtype, bitcast=True).to(tl.float32)
    return value
