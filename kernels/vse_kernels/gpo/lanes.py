"""Columns that several lanes of a warp share, in Triton: a network over their registers.

Each lane sorts its own part, and blocks of 2, 4, ... lanes are merged as in Batcher's bitonic sort:
a block meets its neighbour's mirror image, then halves of what came out meet, down to the
registers. All blocks descend, so that every lane runs the same instructions; in an exchange,
the lower of two lanes keeps the larger values.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, misc, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo.registers import comparators, compare


@triton.jit
def locate_lanes(PAIRS, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Return sample (int64), block, and of each thread its pair of columns and its part of it.

    Neighbours in a warp have neighbouring columns; the lanes of a column are 32 / LANES apart.
    """
    thread = tl.arange(0, COLUMNS * LANES)
    blocks = tl.cdiv(PAIRS, COLUMNS)
    program = tl.program_id(0)
    block = program % blocks
    if LANES == 1:
        column = thread
        part = tl.zeros_like(thread)
    else:
        APART: tl.constexpr = 32 // LANES
        column = thread // 32 * APART + thread % APART
        part = thread // APART % LANES
    return (program // blocks).to(tl.int64), block, block * COLUMNS + column, part


@triton.jit
def over_columns(x, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Sum (COUNT, threads) over the columns; return (COUNT, LANES)."""
    if LANES == 1:
        total = tl.sum(x, axis=1)[:, None]
    else:
        APART: tl.constexpr = 32 // LANES
        total = tl.reshape(x, (x.shape[0], COLUMNS // APART, LANES, APART))
        total = tl.sum(tl.sum(total, axis=3), axis=1)
    return total


@triton.jit
def over_lanes(x, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Sum (threads,) over the lanes of a column; every lane gets (threads,) the sum."""
    if LANES == 1:
        total = x
    else:
        APART: tl.constexpr = 32 // LANES
        warps = tl.reshape(x, (COLUMNS // APART, LANES, APART))
        sums = tl.sum(warps, axis=1, keep_dims=True)
        total = tl.reshape(tl.broadcast_to(sums, warps.shape), x.shape)
    return total


@triton.jit
def weights_at(weights, rank):
    """Return float32 weights of the ranks (COUNT, threads).

    One flat row keeps each column in its thread; for a tile, the layout pass may choose any order
    of threads.
    """
    flat = tl.reshape(rank, (rank.shape[0] * rank.shape[1],))
    return tl.reshape(tl.load(weights + flat), rank.shape).to(tl.float32)


@triton.constexpr_function
def steps(size, lanes):
    """Return the network over `lanes` times `size` positions, a power of two where lanes are many.

    Returns:
        Steps (mask, top, pairs). With mask 0, `pairs` are comparators of a lane's own registers.
        Else each pair (i, j) of registers meets the same pair of lane `lane ^ mask`, i against j
        and j against i; the lane without the bit `top` keeps the larger values.
    """
    found = [(0, 0, comparators(size))]
    straight = tuple((i, i) for i in range(size))
    mirrored = tuple((i, size - 1 - i) for i in range(size // 2))
    halves = [size >> k for k in range(1, size.bit_length())]
    cleaners = tuple((i, i + half) for half in halves for i in range(size) if not i & half)
    block = 2
    while block <= lanes:
        found.append((block - 1, block // 2, mirrored))
        distance = block // 4
        while distance:
            found.append((distance, distance, straight))
            distance //= 2
        found.append((0, 0, cleaners))
        block *= 2
    return tuple(found)


@triton.constexpr_function
def sorting_assembly(size, lanes, kind):
    """Return the PTX of a network over `size` registers; `kind` is the suffix of max and min.

    One block for the whole network: Triton's passes take seconds over a thousand blocks.
    """
    lines = ["{", ".reg .b32 low;"]
    if lanes > 1:
        lines += [".reg .b32 other, lane;", ".reg .pred keeps;", "mov.u32 lane, %laneid;"]
    lines += [f"mov.b32 ${i}, ${size + i};" for i in range(size)]
    apart = 32 // lanes
    for mask, top, pairs in steps(size, lanes):
        if mask:
            lines.append(f"and.b32 other, lane, {top * apart};")
            lines.append("setp.eq.u32 keeps, other, 0;")
        for i, j in pairs:
            if not mask:
                lines.append(f"min{kind} low, ${i}, ${j};")
                lines.append(f"max{kind} ${i}, ${i}, ${j};")
                lines.append(f"mov.b32 ${j}, low;")
                continue
            meets = [("other", i, j), ("low", j, i)] if i != j else [("other", i, i)]
            for name, _, source in meets:
                reach = f"{mask * apart}, 31, 0xffffffff"
                lines.append(f"shfl.sync.bfly.b32 {name}, ${source}, {reach};")
            for name, own, _ in meets:
                lines.append(f"@keeps max{kind} ${own}, ${own}, {name};")
                lines.append(f"@!keeps min{kind} ${own}, ${own}, {name};")
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
def descend_by_assembly(x, SIZE: tl.constexpr, LANES: tl.constexpr, kind: tl.constexpr):
    """Sort SIZE int32 tensors (THREADS,), of which each thread has an element."""
    return tl.inline_asm_elementwise(
        sorting_assembly(SIZE, LANES, kind),
        sorting_constraints(SIZE),
        x,
        repeated(tl.int32, SIZE),
        LANES == 1,  # without an exchange it is pure
        1,
    )


@triton.jit
def descend(x, SIZE: tl.constexpr, LANES: tl.constexpr):
    """Sort as `descend_by_assembly`, elements of any dtype, in the interpreter; NaN propagates."""
    STEPS: tl.constexpr = steps(SIZE, LANES)
    for s in tl.static_range(len(STEPS)):
        if STEPS[s][0]:
            x = exchange(x, STEPS[s][0], STEPS[s][1], STEPS[s][2], LANES)
        else:
            x = compare(x, STEPS[s][2])
    return x


@triton.jit
def exchange(x, MASK: tl.constexpr, TOP: tl.constexpr, PAIRS: tl.constexpr, LANES: tl.constexpr):
    """Keep the larger or smaller of each lane's registers and another's, as `steps` says."""
    APART: tl.constexpr = 32 // LANES
    thread = tl.arange(0, x[0].shape[0])
    keeps = (thread & (TOP * APART)) == 0
    others = ()
    for k in tl.static_range(len(x)):
        others = others + (tl.gather(x[k], thread ^ (MASK * APART), 0),)
    for p in tl.static_range(len(PAIRS)):
        for turn in tl.static_range(2):
            own = PAIRS[p][turn]
            other = others[PAIRS[p][1 - turn]]
            high = tl.maximum(x[own], other, propagate_nan=tl.PropagateNan.ALL)
            low = tl.minimum(x[own], other, propagate_nan=tl.PropagateNan.ALL)
            x = x[:own] + (tl.where(keeps, high, low),) + x[own + 1 :]
    return x


@triton.jit
def descend_integers(x, SIZE: tl.constexpr, LANES: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Sort SIZE int32 tensors (THREADS,) in descending order."""
    return descend_by_assembly(x, SIZE, LANES, ".s32") if ASSEMBLY else descend(x, SIZE, LANES)


@triton.jit
def descend_floats(x, SIZE: tl.constexpr, LANES: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Sort SIZE float32 tensors (THREADS,) in descending order; NaN propagates."""
    if ASSEMBLY:
        bits = ()
        for k in tl.static_range(SIZE):
            bits = bits + (x[k].to(tl.int32, bitcast=True),)
        bits = descend_by_assembly(bits, SIZE, LANES, ".NaN.f32")
        x = ()
        for k in tl.static_range(SIZE):
            x = x + (bits[k].to(tl.float32, bitcast=True),)
    else:
        x = descend(x, SIZE, LANES)
    return x
