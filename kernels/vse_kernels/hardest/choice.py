"""Block sizes of the mining kernel per GPU generation: the one place to tune.

Chosen by registers, spills and shared memory from ahead-of-time compilation
(tests/kernels/limits.py); no choice has been timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# An index takes the low 31 bits of a key, and a grid has at most as many programs.
LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class Blocks:
    """Launch parameters of the mining kernel.

    Attributes:
        rows: queries per tile.
        columns: candidates per tile.
        depth: embedding entries per step.
        group: rows of tiles in one traversal group, so that L2 keeps their candidates.
        warps: warps per program.
        stages: depth steps in flight.
        registers: limit per thread; None leaves it to the compiler.
    """

    rows: int
    columns: int
    depth: int
    group: int
    warps: int
    stages: int
    registers: int | None = None


# Tensor cores do not multiply float32 exactly; the other units do, and want small tiles.
_FLOAT32 = Blocks(64, 64, 32, group=8, warps=4, stages=3)
_HALF = {
    8: Blocks(128, 128, 64, group=8, warps=8, stages=3),
    # Two programs share a multiprocessor: one multiplies while the other reduces. Triton 3.6 would
    # use 147 registers; with 128 nothing spills.
    9: Blocks(128, 128, 64, group=8, warps=8, stages=3, registers=128),
    10: Blocks(128, 128, 64, group=8, warps=8, stages=3),
}


def blocks(dtype: torch.dtype, capability: int) -> Blocks:
    """Return the blocks for embeddings of `dtype` on compute capability `capability`.x."""
    if dtype == torch.float32:
        return _FLOAT32
    return _HALF[min(max(capability, min(_HALF)), max(_HALF))]


def unsupported(queries: int, candidates: int, dtype: torch.dtype) -> str | None:
    """Return the property that the Triton kernel does not support, or None."""
    if dtype not in DTYPES:
        return "float64 is computed by torch alone"
    smallest = min(block.rows * block.columns for block in (_FLOAT32, *_HALF.values()))
    if max(queries, candidates) > LARGEST_INDEX or queries * candidates > smallest * LARGEST_INDEX:
        return f"{queries} x {candidates} scores are more tiles than a grid can hold"
    return None
