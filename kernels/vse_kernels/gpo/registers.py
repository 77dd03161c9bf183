"""Columns in the registers of one thread, in Triton: splitting of tiles, sorting, stacking.

A network needs one tensor per position, but loads and stores use whole tiles. For each memory
operation, Triton (TritonGPUCoalesce) walks all operations connected with it; one per position made
a kernel for 64 positions take minutes to compile.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo import network

# Evaluated when a kernel compiles. As an argument, the list would be hashed at every launch.
comparators = triton.constexpr_function(network.comparators.__wrapped__)


@triton.jit
def length_of(lengths, sample, K):
    """Return the length of a sample, int32; outside [0, K], the nearest of these."""
    size = tl.load(lengths + sample)
    # Minima would keep their result in the way of the comparisons that follow: 70 instructions.
    return tl.where(size < 0, 0, tl.where(size > K, K, size)).to(tl.int32)


@triton.jit
def compare(x, PAIRS: tl.constexpr):
    """Keep the larger of each pair of tensors at its first place; NaN propagates."""
    for s in tl.static_range(len(PAIRS)):
        high = tl.maximum(x[PAIRS[s][0]], x[PAIRS[s][1]], propagate_nan=tl.PropagateNan.ALL)
        low = tl.minimum(x[PAIRS[s][0]], x[PAIRS[s][1]], propagate_nan=tl.PropagateNan.ALL)
        x = (
            x[: PAIRS[s][0]]
            + (high,)
            + x[PAIRS[s][0] + 1 : PAIRS[s][1]]
            + (low,)
            + x[PAIRS[s][1] + 1 :]
        )
    return x


@triton.jit
def halve(tiles, HALF: tl.constexpr):
    """Cut each (2 HALF, COLUMNS) into two (HALF, COLUMNS)."""
    halves = ()
    for t in tl.static_range(len(tiles)):
        pair = tl.reshape(tiles[t], (2, HALF, tiles[t].shape[1]))
        halves = halves + tl.split(tl.permute(pair, (1, 2, 0)))
    return halves


@triton.jit
def unbind(tile, COUNT: tl.constexpr):
    """Split (COUNT, COLUMNS) into COUNT tensors (COLUMNS,); COUNT is a power of two up to 64."""
    tiles = (tile,)
    for level in tl.static_range(6):
        if COUNT >> (level + 1):
            tiles = halve(tiles, COUNT >> (level + 1))
    parts = ()
    for t in tl.static_range(COUNT):
        parts = parts + (tl.reshape(tiles[t], (tiles[t].shape[1],)),)
    return parts


@triton.jit
def pair_up(tiles, WIDTH: tl.constexpr):
    """Stack neighbours (WIDTH / 2, COLUMNS) to (WIDTH, COLUMNS)."""
    pairs = ()
    for t in tl.static_range(len(tiles) // 2):
        pair = tl.permute(tl.join(tiles[2 * t], tiles[2 * t + 1]), (2, 0, 1))
        pairs = pairs + (tl.reshape(pair, (WIDTH, tiles[2 * t].shape[1])),)
    return pairs


@triton.jit
def stack(parts, START: tl.constexpr, COUNT: tl.constexpr):
    """Stack parts[START : START + COUNT], each (COLUMNS,), to (COUNT, COLUMNS)."""
    tiles = ()
    for t in tl.static_range(COUNT):
        tiles = tiles + (tl.reshape(parts[START + t], (1, parts[START + t].shape[0])),)
    for level in tl.static_range(6):
        if COUNT >> (level + 1):
            tiles = pair_up(tiles, 2 << level)
    return tiles[0]
