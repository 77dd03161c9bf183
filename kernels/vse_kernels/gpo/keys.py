"""Keys whose order is that of a stable descending torch.sort, and their network, in Triton.

A key holds the monotonic bits of a value above its place, which is 511 - position: 64 bits for
float32, else 32. -0 equals +0, and NaN is the largest.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo.lanes import descend_integers, repeated, steps
from vse_kernels.gpo.ordering import ordered_bits, ordered_value


@triton.jit
def canonical(x, ASSEMBLY: tl.constexpr):
    """Return the int32 bits of float32 values: every zero +0, every NaN 0x7FFFFFFF."""
    if ASSEMBLY:
        bits = tl.inline_asm_elementwise(
            "{ .reg .f32 sum; add.rn.f32 sum, $1, 0f00000000; max.NaN.f32 $0, sum, sum; }",
            "=r,r",
            [x],
            tl.int32,
            True,
            1,
        )
    else:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == 0, 0, tl.where(x != x, 0x7FFFFFFF, bits))
    return bits


@triton.jit
def sort_key(x, place, ASSEMBLY: tl.constexpr):
    """Return keys whose descending order is stable: int64 for float32, else int32.

    Among equal values, the lower position has the larger place, and so the larger key.
    """
    if x.dtype == tl.float32:
        bits = canonical(x, ASSEMBLY)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        key = (bits.to(tl.int64) << 32) | place.to(tl.int64)
    else:
        key = (ordered_bits(x) << 16) | place
    return key


@triton.jit
def value_of_key(key, dtype: tl.constexpr):
    """Return the float32 value of a `sort_key`."""
    bits = (key >> 32).to(tl.int32) if dtype == tl.float32 else key >> 16
    return ordered_value(bits, dtype)


@triton.jit
def place_of_key(key, dtype: tl.constexpr):
    """Return the int32 place of a `sort_key`."""
    return key.to(tl.int32) if dtype == tl.float32 else key & 0xFFFF


@triton.jit
def descend_keys(x, SIZE: tl.constexpr, LANES: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Sort SIZE tensors (THREADS,) of int32 or int64 keys in descending order."""
    if ASSEMBLY and x[0].dtype == tl.int64:
        x = tl.inline_asm_elementwise(
            key_assembly(SIZE, LANES),
            key_constraints(SIZE),
            x,
            repeated(tl.int64, SIZE),
            LANES == 1,  # without an exchange it is pure
            1,
        )
    else:
        x = descend_integers(x, SIZE, LANES, ASSEMBLY)
    return x


@triton.constexpr_function
def key_assembly(size, lanes):
    """Return the PTX of a network over `size` int64 keys, as `sorting_assembly`.

    The halves of key i are the registers a (upper) and b (lower). `one` is the second extent of a
    grid that has one, which the assembler does not know: it would make sums of the products below,
    and these run on the integer pipe.
    """
    names = (*range(size), "x", "y")
    lines = ["{", ".reg .b64 first, second;", ".reg .pred takes, keeps;", ".reg .b32 lane, bit;"]
    lines += [".reg .b32 one, minus;", "mov.u32 one, %nctaid.y;", "neg.s32 minus, one;"]
    lines += [f".reg .b32 a{i}, b{i};" for i in names]
    lines += [f"mov.b64 {{b{i}, a{i}}}, ${size + i};" for i in range(size)]
    if lanes > 1:
        lines.append("mov.u32 lane, %laneid;")
    apart = 32 // lanes
    for mask, top, pairs in steps(size, lanes):
        if mask:
            lines += [f"and.b32 bit, lane, {top * apart};", "setp.eq.u32 keeps, bit, 0;"]
        for i, j in pairs:
            lines += meeting(i, j, mask * apart) if mask else comparator(i, j)
    lines += [f"mov.b64 ${i}, {{b{i}, a{i}}};" for i in range(size)]
    return "\n".join([*lines, "}"])


@triton.constexpr_function
def comparator(i, j):
    """Return the lines that leave the larger of two keys in the first.

    Either half of the larger is chosen, and that of the smaller is the sum of both less the chosen
    one: four instructions of the integer pipe, and four of that of multiply-adds. Of a choice of
    whole keys the assembler makes a maximum and a minimum, which compare twice: eight.
    """
    return [
        *compared(i, j),
        "setp.lt.s64 takes, first, second;",
        f"mad.lo.s32 ax, a{i}, one, a{j};",
        f"mad.lo.s32 bx, b{i}, one, b{j};",
        f"selp.b32 a{i}, a{j}, a{i}, takes;",
        f"selp.b32 b{i}, b{j}, b{i}, takes;",
        f"mad.lo.s32 a{j}, a{i}, minus, ax;",
        f"mad.lo.s32 b{j}, b{i}, minus, bx;",
    ]


@triton.constexpr_function
def compared(i, j):
    """Return the lines that join the halves of two keys."""
    return [f"mov.b64 first, {{b{i}, a{i}}};", f"mov.b64 second, {{b{j}, a{j}}};"]


@triton.constexpr_function
def meeting(i, j, distance):
    """Return the lines by which keys i and j meet j and i of the lane at `distance`."""
    meets = [("x", i, j), ("y", j, i)] if i != j else [("x", i, i)]
    lines = [
        f"shfl.sync.bfly.b32 {half}{name}, {half}{source}, {distance}, 31, 0xffffffff;"
        for name, _, source in meets
        for half in "ab"
    ]
    for name, own, _ in meets:
        lines += [*compared(own, name), "setp.lt.xor.s64 takes, first, second, !keeps;"]
        lines += [f"selp.b32 {half}{own}, {half}{name}, {half}{own}, takes;" for half in "ab"]
    return lines


@triton.constexpr_function
def key_constraints(size):
    """Return the constraints of `key_assembly`: results are written after all are read."""
    return ",".join(["=l"] * size + ["l"] * size)
