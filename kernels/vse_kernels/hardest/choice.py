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
# With more, the kernel of all violations spills on some generations.
MOST_POSITIVES = 8


@dataclass(frozen=True)
class Blocks:
    """Launch parameters of the mining kernels.

    Attributes:
        rows: queries per tile.
        columns: candidates per tile.
        depth: embedding entries per step.
        precision: of the product of float32 embeddings, as `tl.dot` names it.
        group: rows of tiles in one traversal group, so that L2 keeps their candidates.
        warps: warps per program.
        stages: depth steps in flight.
        part: columns of a tile that the second kernel computes at a time.
    """

    rows: int
    columns: int
    depth: int
    precision: str = "ieee"
    group: int = 8
    warps: int = 8
    stages: int = 3
    part: int = 32


# Three products of TF32 parts are as exact as one in float32, on tensor cores.
_FLOAT32 = {
    8: Blocks(128, 64, 32, "tf32x3"),
    9: Blocks(128, 128, 32, "tf32x3"),
    10: Blocks(128, 64, 32, "tf32x3"),
}
_HALF = {
    8: Blocks(128, 128, 64),
    # 85 operations per byte from L2, where 128 x 128 has 64; wider tiles spill.
    9: Blocks(256, 128, 64),
    10: Blocks(128, 64, 64),
}


def blocks(dtype: torch.dtype, capability: int) -> Blocks:
    """Return the blocks for embeddings of `dtype` on compute capability `capability`.x."""
    table = _FLOAT32 if dtype == torch.float32 else _HALF
    return table[min(max(capability, min(table)), max(table))]


# Of the kernel of all violations, on every generation. A thread holds thresholds, counts and sums
# of a quarter of its tile's columns: wider tiles spill where an image has several captions.
VIOLATIONS = {
    torch.float32: Blocks(128, 64, 32, "tf32x3"),
    torch.bfloat16: Blocks(128, 64, 64),
    torch.float16: Blocks(128, 64, 64),
}


def unsupported(queries: int, candidates: int, dtype: torch.dtype) -> str | None:
    """Return the property that the Triton kernel does not support, or None."""
    if dtype not in DTYPES:
        return "float64 is computed by torch alone"
    smallest = min(block.rows * block.columns for block in (*_FLOAT32.values(), *_HALF.values()))
    if max(queries, candidates) > LARGEST_INDEX or queries * candidates > smallest * LARGEST_INDEX:
        return f"{queries} x {candidates} scores are more tiles than a grid can hold"
    return None


def unsupported_positives(of_query: int, of_candidate: int) -> str | None:
    """Return what the kernel of all violations does not support of the positives, or None."""
    if min(of_query, of_candidate) > 1:
        return "several positives of queries and of candidates at once are computed by torch alone"
    if max(of_query, of_candidate) > MOST_POSITIVES:
        return f"more than {MOST_POSITIVES} positives of a row are computed by torch alone"
    return None
