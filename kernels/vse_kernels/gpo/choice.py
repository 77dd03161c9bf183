"""Triton kernel and block sizes per number of positions: the one place to tune.

Chosen by counts of instructions and registers from ahead-of-time compilation
(tests/kernels/limits.py); no choice has been timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# The network is unrolled and keeps a column in the registers of one thread. Positions are rounded
# up to one of these sizes, so that captions of all lengths share a few compiled kernels.
NETWORK_SIZES = (4, 8, 16, 24, 32, 36, 48, 64)
# Positions per load and store of a network. With 64 the backward pass spills in float32
# and takes 250 registers instead of 160 in bfloat16; with 16 it compiles half again as long.
LARGEST_PART = 32
# Sorts across threads reach this size: beyond it an order no longer fits in one byte.
LARGEST = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Launch:
    """Launch parameters of a pooling kernel.

    Attributes:
        size: positions after rounding up, a compile-time constant.
        columns: columns per program.
        warps: warps per program.
        parts: (start, count) of the tiles that the network loads and stores; empty for the sort
            across threads.
    """

    size: int
    columns: int
    warps: int
    parts: tuple[tuple[int, int], ...] = ()


def unsupported(positions: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> str | None:
    """Return the property that the Triton kernels do not support, or None."""
    if positions > LARGEST:
        return f"features has K = {positions} positions, above {LARGEST}"
    if dtype not in DTYPES or weight_dtype not in DTYPES:
        return "float64 is computed by torch alone"
    return None


def forward_launch(positions: int) -> Launch:
    """Return the forward launch: four warps share the weights of a sample."""
    return network_launch(positions, columns=128, warps=4) or sort_launch(positions)


def backward_launch(positions: int) -> Launch:
    """Return the backward launch: one warp, whose sum over columns needs no barrier."""
    return network_launch(positions, columns=32, warps=1) or sort_launch(positions)


def network_launch(positions: int, columns: int, warps: int) -> Launch | None:
    """Return the network of the next size, a thread per column, or None above the largest."""
    for size in NETWORK_SIZES:
        if positions <= size:
            return Launch(size, columns, warps, parts(size))
    return None


def parts(size: int) -> tuple[tuple[int, int], ...]:
    """Split `size` positions into powers of two of at most LARGEST_PART; return (start, count)."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < size:
        count = min(LARGEST_PART, 1 << ((size - start).bit_length() - 1))
        found.append((start, count))
        start += count
    return tuple(found)


def sort_launch(positions: int) -> Launch:
    """Return the sort across threads: a power of two of positions, 16 columns."""
    return Launch(1 << (positions - 1).bit_length(), columns=16, warps=4)
