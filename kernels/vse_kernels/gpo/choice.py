"""Networks and block sizes per number of positions: the one place to tune.

Chosen by counts of instructions and registers from ahead-of-time compilation
(tests/kernels/limits.py); no choice has been timed on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Positions per load and store of a network. With 64 the backward pass spills in float32
# and takes 250 registers instead of 160 in bfloat16; with 16 it compiles half again as long.
LARGEST_PART = 32
# Networks of a kernel by the rounded number of positions: a sample is sorted by the first that
# holds it, as most captions are far shorter than the longest. Two at most: each is compiled.
NETWORKS = {
    4: (4,),
    8: (8,),
    16: (8, 16),
    24: (16, 24),
    32: (16, 32),
    36: (16, 36),
    48: (24, 48),
    56: (24, 56),
    64: (24, 64),
    100: (100,),
}
# Beyond, the lanes of a warp that share a column by the rounded number of positions, of which each
# keeps as many. The backward pass keeps two registers per position: with 64, Triton 3.6 spills.
LARGEST_BACKWARD = 56
FORWARD_LANES = {128: 2, 256: 4, 512: 8}
BACKWARD_LANES = {64: 2, 128: 4, 256: 8, 512: 16}
LARGEST = 512
# The backward pass codes the ranks of pairs of columns in 16 bits up to this size.
LARGEST_CODED = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Launch:
    """Launch parameters of a pooling kernel.

    Attributes:
        size: positions after rounding up.
        columns: columns per program, or pairs of columns.
        warps: warps per program.
        sizes: of the networks, ascending.
        lanes: that share a column, or a pair of columns.
    """

    size: int
    columns: int
    warps: int
    sizes: tuple[int, ...]
    lanes: int = 1


def unsupported(positions: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> str | None:
    """Return the property that the Triton kernels do not support, or None."""
    if positions > LARGEST:
        return f"features has K = {positions} positions, above {LARGEST}"
    if dtype not in DTYPES or weight_dtype not in DTYPES:
        return "float64 is computed by torch alone"
    return None


def packs(features: Tensor, backward: bool = False) -> bool:
    """Return whether the kernels for pairs of columns run; AMD's GPUs lack their instructions.

    Known without strides and addresses, which torch.compile may change: pairs of an even width that
    are no aligned words in memory are copied.
    """
    if backward and features.shape[1] > LARGEST_CODED:
        return False
    return features.dtype.itemsize == 2 and torch.version.hip is None


def forward_launch(positions: int) -> Launch:
    """Return the forward launch: four warps share the weights of a sample."""
    return _launch(positions, max(NETWORKS, default=0), FORWARD_LANES, 128, warps=4)


def backward_launch(positions: int) -> Launch:
    """Return the backward launch: one warp, whose sum over columns needs no barrier."""
    return _launch(positions, LARGEST_BACKWARD, BACKWARD_LANES, 32, warps=1)


def _launch(
    positions: int, largest: int, lanes: Mapping[int, int], threads: int, warps: int
) -> Launch:
    """Return a lane per column up to `largest` positions, and several beyond."""
    for size, sizes in NETWORKS.items():
        if positions <= min(size, largest):
            return Launch(size, threads, warps, sizes=sizes)
    size = min(size for size in lanes if positions <= size)
    several = lanes[size]
    return Launch(size, threads // several, warps, sizes=(size // several,), lanes=several)


def parts(size: int) -> tuple[tuple[int, int], ...]:
    """Split `size` positions into powers of two of at most LARGEST_PART; return (start, count)."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < size:
        count = min(LARGEST_PART, 1 << ((size - start).bit_length() - 1))
        found.append((start, count))
        start += count
    return tuple(found)
