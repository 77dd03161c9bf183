"""Which Triton kernel pools how many positions, and with which blocks: the one place to tune.

The figures behind it are counts of instructions and registers from ahead-of-time compilation
(tests/kernels/limits.py); none has been timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# The network is unrolled and holds a column in the registers of one thread. Positions are rounded
# up to one of these, so that captions of every length share a few compiled kernels.
NETWORK_SIZES = (4, 8, 16, 24, 32, 36, 48, 64)
# Positions that a network loads and stores at a time. With 64 the backward pass spills in float32
# and takes 250 registers instead of 160 in bfloat16; with 16 it compiles half again as long.
LARGEST_PART = 32
# Beyond it a block of columns is sorted across threads, and an order fits in one byte.
LARGEST = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

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
    """What the Triton kernels do not cover, or None."""
    if positions > LARGEST:
        return f"features has K = {positions} positions, above {LARGEST}"
    if dtype not in DTYPES or weight_dtype not in DTYPES:
        return "float64 is computed by torch alone"
    return None


def forward_launch(positions: int) -> Launch:
    """Four warps share the weights of a sample."""
    return network_launch(positions, columns=128, warps=4) or sort_launch(positions)


def backward_launch(positions: int) -> Launch:
    """One warp per program: the weight gradient's sum over columns then needs no barrier."""
    return network_launch(positions, columns=32, warps=1) or sort_launch(positions)


def network_launch(positions: int, columns: int, warps: int) -> Launch | None:
    """The network of the next size, or None above the largest; a thread for each column."""
    for size in NETWORK_SIZES:
        if positions <= size:
            return Launch(size, columns, warps, parts(size))
    return None


def parts(size: int) -> tuple[tuple[int, int], ...]:
    """(start, count) of powers of two that make up `size` positions, LARGEST_PART at most."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < size:
        count = min(LARGEST_PART, 1 << ((size - start).bit_length() - 1))
        found.append((start, count))
        start += count
    return tuple(found)


def sort_launch(positions: int) -> Launch:
    """The sort across threads: a power of two of positions, 16 columns."""
    return Launch(1 << (positions - 1).bit_length(), columns=16, warps=4)
