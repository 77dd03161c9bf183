"""Predict the time of a kernel from its machine code: a static model, held against no GPU yet.

A launch takes as long as its busiest resource: one of a multiprocessor's pipes, the issue of
instructions, or memory. Latency, caches and the tail of a grid are left out, so a measurement
should be 1.1 to 1.25 times the prediction. Every instruction counts once: the model is for kernels
without loops, compiled for one branch.
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

    The bandwidth is that of a large copy, about nine tenths of the data sheet's.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float


H200 = Device("H200", 132, 1.755e9, 4.3e12)


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
    lanes_a_second = device.multiprocessors * device.clock
    times = {
        pipe: counts.get(pipe, 0) * warps * 32 / lanes / lanes_a_second
        for pipe, lanes in LANES.items()
    }
    times["memory"] = floor(bytes_moved, device)
    busiest = max(times, key=lambda name: times[name])
    return times[busiest], busiest
