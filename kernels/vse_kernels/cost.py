"""Predict the time of a kernel from its machine code: a static model, held against no GPU yet.

A launch takes as long as its busiest resource: one of a multiprocessor's pipes, the issue of
instructions, or memory. Latency, caches and the tail of a grid are left out, so a measurement
should be 1.1 to 1.25 times the prediction. Every instruction counts once: `predict` is for kernels
without loops, compiled for one branch. `predict_tiles` is for products of matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# Lanes per clock of a multiprocessor's pipes, sm_80 to sm_100, from the throughput table of the
# CUDA programming guide. FMA counts IMAD too, which runs on one half of that pipe alone.
LANES = {
    "alu": 64,
    "imad": 64,
    "fma": 128,
    "load_store": 32,
    "shuffle": 32,
    "special": 16,
    "uniform": 64,
    "issue": 128,
}
_PIPES = {
    "imad": "IMAD IMUL IDP",
    "fma": "FFMA FADD FMUL HFMA2 HADD2 HMUL2 FFMA2",
    "load_store": "LDG STG LDS STS LDSM STSM ATOM ATOMG ATOMS RED REDG LDL STL LDGSTS LD ST LDC "
    "LDGDEPBAR MATCH CCTL SUST",
    "shuffle": "SHFL REDUX",
    "special": "MUFU F2I I2F F2F POPC FRND",
    "control": "BRA BSSY BSYNC EXIT NOP BAR DEPBAR WARPSYNC RET CALL MEMBAR ERRBAR S2R S2UR R2UR "
    "VOTE VOTEU YIELD NANOSLEEP BREAK B2R R2B LEPC BMOV WARPGROUP SYNCS ELECT FENCE ARRIVES",
}
_PIPE_OF = {operation: pipe for pipe, names in _PIPES.items() for operation in names.split()}


@dataclass(frozen=True)
class Device:
    """Resources of a GPU: multiprocessors, clock in Hz, and memory bandwidth in bytes per second.

    The bandwidth is that of a large copy, about nine tenths of the data sheet's. Products are the
    multiplications, each with its addition, of 16-bit floats per clock and multiprocessor.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float
    products: int


H200 = Device("H200", 132, 1.755e9, 4.3e12, 2048)


def pipe_of(operation: str) -> str:
    """Return the pipe of a SASS operation such as "HMNMX2"; what is not listed runs on "alu"."""
    if operation.endswith("MMA"):
        return "tensor"
    if operation in _PIPE_OF:
        return _PIPE_OF[operation]
    return "uniform" if operation.startswith("U") else "alu"


def by_pipe(operations: Mapping[str, int]) -> Counter[str]:
    """Return instructions by pipe; "issue" counts all, "fma" those of "imad" too."""
    counts: Counter[str] = Counter()
    for operation, count in operations.items():
        if operation != "NOP":
            counts[pipe_of(operation)] += count
            counts["issue"] += count
    counts["fma"] += counts["imad"]
    return counts


def floor(bytes_moved: int, device: Device = H200) -> float:
    """Return the seconds that memory takes for `bytes_moved`, below which no kernel can be."""
    return bytes_moved / device.bandwidth


def predict(
    counts: Mapping[str, int], warps: int, bytes_moved: int, device: Device = H200
) -> tuple[float, str]:
    """Return the seconds of a launch and the resource that takes them.

    Args:
        counts: instructions of a warp by pipe, as `by_pipe` has them.
        warps: of the whole grid.
        bytes_moved: that any implementation reads and writes.
        device: to predict for.
    """
    times = {
        pipe: clocks / (device.multiprocessors * device.clock)
        for pipe, clocks in _clocks(counts, warps).items()
    }
    times["memory"] = floor(bytes_moved, device)
    busiest = max(times, key=lambda name: times[name])
    return times[busiest], busiest


def _clocks(counts: Mapping[str, int], warps: int) -> dict[str, float]:
    """Return the clocks that each pipe of one multiprocessor takes for `warps` warps."""
    return {pipe: counts.get(pipe, 0) * warps * 32 / lanes for pipe, lanes in LANES.items()}


@dataclass(frozen=True)
class Tiles:
    """A kernel that computes tiles of a product.

    Attributes:
        once: instructions of a warp by pipe, outside of the loop over the depth.
        step: those of a step of that loop.
        warps: per program.
        rows: of a tile.
        columns: of a tile.
        depth: entries of a row per step.
        times: that the tensor cores multiply a pair of entries, in units of 16-bit floats.
        resident: programs that a multiprocessor holds at a time.
    """

    once: Mapping[str, int]
    step: Mapping[str, int]
    warps: int
    rows: int
    columns: int
    depth: int
    times: int = 1
    resident: int = 1


def product_seconds(rows: int, columns: int, width: int, device: Device = H200) -> float:
    """Return the seconds that the tensor cores take for (rows, width) @ (width, columns)."""
    return rows * columns * width / (device.products * device.multiprocessors * device.clock)


def predict_tiles(
    tiles: Tiles, rows: int, columns: int, width: int, device: Device = H200
) -> tuple[float, float]:
    """Return the seconds of a launch over all tiles, and the share of them outside the loop.

    A step of the loop takes as long as its busiest pipe or the tensor cores, which run beside each
    other. Outside the loop nothing hides the instructions of a program that is alone on its
    multiprocessor. Those of several hide each other, up to what a pipe or the tensor cores take for
    all of them.
    """
    steps = -(-width // tiles.depth)
    multiplied = tiles.rows * tiles.columns * tiles.depth * tiles.times / device.products
    step = _clocks(tiles.step, tiles.warps) | {"tensor": multiplied}
    outside = _clocks(tiles.once, tiles.warps) | {"tensor": 0.0}
    once = max(outside.values())
    alone = once + steps * max(step.values())
    busiest = max(outside[pipe] + steps * step[pipe] for pipe in step)
    total = max(alone, tiles.resident * busiest) / tiles.resident
    programs = -(-rows // tiles.rows) * -(-columns // tiles.columns)
    return -(-programs // device.multiprocessors) * total / device.clock, once / alone
