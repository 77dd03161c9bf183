"""Which Triton kernel pools how many positions, and with which blocks: the one place to tune.

The figures behind it are counts of instructions and registers from ahead-of-time compilation
(tests/kernels/limits.py); none has been timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vse_kernels.gpo.network import comparators

# The network is unrolled and holds a column in the registers of one thread. Positions are rounded
# up to one of these, so that captions of every length share a few compiled kernels.
NETWORK_SIZES = (4, 8, 16, 24, 32, 36, 48, 64)
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
        comparators: the sorting network, or None for the sort across threads.
    """

    size: int
    columns: int
    warps: int
    comparators: tuple[tuple[int, int], ...] | None


def unsupported(positions: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> str | None:
    """What the Triton kernels do not cover, or None."""
    if positions > LARGEST:
        return f"features has K = {positions} positions, above {LARGEST}"
    if dtype not in DTYPES or weight_dtype not in DTYPES:
        return "float64 is computed by torch alone"
    return None


def forward_launch(positions: int) -> Launch:
    """The network up to 64 positions: loads that keep a whole warp's row of columns together."""
    for size in NETWORK_SIZES:
        if positions <= size:
            return Launch(size, columns=128, warps=4, comparators=comparators(size))
    return sort_launch(positions)


def backward_launch(positions: int) -> Launch:
    """One warp per program: the weight gradient's sum over columns then needs no barrier."""
    for size in NETWORK_SIZES:
        if positions <= size:
            return Launch(size, columns=32, warps=1, comparators=comparators(size))
    return sort_launch(positions)


def sort_launch(positions: int) -> Launch:
    """The sort across threads: a power of two of positions, 16 columns."""
    return Launch(1 << (positions - 1).bit_length(), columns=16, warps=4, comparators=None)
