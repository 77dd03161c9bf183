"""Columns that lie in the registers of one thread, in Triton: taken apart, sorted, put together.

A network needs one tensor per position. Loads and stores are of whole tiles nevertheless: Triton
(TritonGPUCoalesce) walks everything that a memory operation is connected with, for each of them,
so that one per position made a kernel for 64 positions take minutes to compile.
"""

# Triton types a kernel's parameters when it compiles, and its language has tuples that grow by
# concatenation alone.
# ruff: noqa: ANN001, ANN201, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from vse_kernels.gpo import network

# Evaluated while a kernel compiles. As an argument the list would be hashed at every launch.
comparators = triton.constexpr_function(network.comparators.__wrapped__)


@triton.jit
def descend(x, SIZE: tl.constexpr):
    """Sort a tuple of SIZE tensors, elementwise, in descending order; a NaN spreads."""
    PAIRS: tl.constexpr = comparators(SIZE)
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
    """Take (COUNT, COLUMNS) apart into COUNT tensors (COLUMNS,); COUNT a power of two to 64."""
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
    """Put neighbours (WIDTH / 2, COLUMNS) together as (WIDTH, COLUMNS)."""
    pairs = ()
    for t in tl.static_range(len(tiles) // 2):
        pair = tl.permute(tl.join(tiles[2 * t], tiles[2 * t + 1]), (2, 0, 1))
        pairs = pairs + (tl.reshape(pair, (WIDTH, tiles[2 * t].shape[1])),)
    return pairs


@triton.jit
def stack(parts, START: tl.constexpr, COUNT: tl.constexpr):
    """Put parts[START : START + COUNT], each (COLUMNS,), together as (COUNT, COLUMNS)."""
    tiles = ()
    for t in tl.static_range(COUNT):
        tiles = tiles + (tl.reshape(parts[START + t], (1, parts[START + t].shape[0])),)
    for level in tl.static_range(6):
        if COUNT >> (level + 1):
            tiles = pair_up(tiles, 2 << level)
    return tiles[0]
