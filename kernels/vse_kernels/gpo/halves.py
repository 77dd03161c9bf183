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

from vse_kernels.gpo.registers import comparators, descend


@triton.constexpr_function
def sorting_assembly(pairs, size, kind):
    """Return the PTX of a network over `size` registers; `kind` is the suffix of max and min.

    One block for the whole network: Triton's passes take seconds over a thousand blocks.
    """
    lines = ["{", ".reg .b32 low;"]
    lines += [f"mov.b32 ${i}, ${size + i};" for i in range(size)]
    for i, j in pairs:
        lines.append(f"min{kind} low, ${i}, ${j};")
        lines.append(f"max{kind} ${i}, ${i}, ${j};")
        lines.append(f"mov.b32 ${j}, low;")
    return "\n".join([*lines, "}"])


@triton.constexpr_function
def sorting_constraints(size):
    """Return the constraints of `sorting_assembly`: results are written before all are read."""
    return ",".join(["=&r"] * size + ["r"] * size)


@triton.constexpr_function
def repeated(dtype, size):
    """Return a tuple of `size` times `dtype`."""
    return (dtype,) * size


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
def round_pair(even, odd, dtype: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Round two float32 tensors to dtype and join them."""
    if ASSEMBLY:  # one instruction; two conversions would take a slow pipe
        kind: tl.constexpr = "bf16x2" if dtype == tl.bfloat16 else "f16x2"
        pair = tl.inline_asm_elementwise(
            "cvt.rn." + kind + ".f32 $0, $1, $2;", "=r,r,r", [odd, even], tl.int32, True, 1
        )
    else:
        low = even.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 65535
        pair = low | (odd.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) << 16)
    return pair


@triton.jit
def descend_pairs(x, SIZE: tl.constexpr, dtype: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Sort both halves of SIZE tensors (COLUMNS,) in descending order; NaN propagates."""
    if ASSEMBLY:
        kind: tl.constexpr = ".NaN.bf16x2" if dtype == tl.bfloat16 else ".NaN.f16x2"
        x = tl.inline_asm_elementwise(
            sorting_assembly(comparators(SIZE), SIZE, kind),
            sorting_constraints(SIZE),
            x,
            repeated(tl.int32, SIZE),
            True,
            1,
        )
    else:
        even = ()
        odd = ()
        for k in tl.static_range(SIZE):
            even = even + (low_half(x[k], dtype),)
            odd = odd + (high_half(x[k], dtype),)
        even = descend(even, SIZE)
        odd = descend(odd, SIZE)
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
        even = low_half(pair, dtype) + 0.0
        odd = high_half(pair, dtype) + 0.0
        even = tl.where(even != even, float("nan"), even)
        odd = tl.where(odd != odd, float("nan"), odd)
        pair = round_pair(even, odd, dtype, False)
        # NumPy's NaN has no bits below the quiet one.
        pair = tl.where(even != even, pair | 0x7FFF, pair)
        pair = tl.where(odd != odd, pair | 0x7FFF0000, pair)
    return pair ^ (((pair >> 15) & 0x10001) * 0x7FFF)


@triton.jit
def pair_of_ordered(pair):
    """Return the pairs of floats whose `ordered_pair` is `pair`."""
    return pair ^ (((pair >> 15) & 0x10001) * 0x7FFF)


@triton.jit
def descend_integers(x, SIZE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Sort SIZE int32 tensors (COLUMNS,) in descending order."""
    if ASSEMBLY:
        x = tl.inline_asm_elementwise(
            sorting_assembly(comparators(SIZE), SIZE, ".s32"),
            sorting_constraints(SIZE),
            x,
            repeated(tl.int32, SIZE),
            True,
            1,
        )
    else:
        x = descend(x, SIZE)
    return x


@triton.jit
def descend_codes(x, SIZE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Sort both halves of SIZE tensors of codes below 0x7C00 in descending order.

    Such integers have the order of the float16 of the same bits.
    """
    if ASSEMBLY:
        x = tl.inline_asm_elementwise(
            sorting_assembly(comparators(SIZE), SIZE, ".f16x2"),
            sorting_constraints(SIZE),
            x,
            repeated(tl.int32, SIZE),
            True,
            1,
        )
    else:
        even = ()
        odd = ()
        for k in tl.static_range(SIZE):
            even = even + (x[k] & 65535,)
            odd = odd + (x[k] >> 16,)
        even = descend(even, SIZE)
        odd = descend(odd, SIZE)
        x = ()
        for k in tl.static_range(SIZE):
            x = x + (even[k] | (odd[k] << 16),)
    return x
