"""Time and memory of the order of training over made splits of up to 1.28e9 pairs.

    python tests/scaling/order_scaling.py [PAIRS ...]

prints the table of docs/scaling.md: for each size and kind of order, in a process of its own, one
rank of 512 opens a mapped column of captions, makes its plan and takes its part of 200 batches.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_280_000_000)
BATCH, RANKS, RANK, STEPS = 65_536, 512, 300, 200
SHARD = 10_000  # images
KINDS: dict[str, dict[str, Any]] = {
    "whole split": {},
    "window of 1,024 shards": {"shuffle_window": 1024},
    "512 streams, the same": {"shuffle_window": 1024, "streams": 512},
}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(measured(Path(arguments[1]), KINDS[arguments[2]]))
        return
    print("| pairs | order | first batch, s | later, ms (most) | MB, of it before |")
    print("|---:|---|---:|---:|---:|")
    for size in map(int, map(float, arguments)) if arguments else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            column = Path(folder, "captions.npy")
            write_column(column, size)
            for kind in KINDS:
                row = subprocess.run(
                    [sys.executable, __file__, "--one", str(column), kind],
                    check=True, capture_output=True, text=True,
                ).stdout.strip()  # fmt: skip
                print(f"| {size:.3g} | {kind} | {row} |", flush=True)


def write_column(path: Path, pairs: int) -> None:
    """Write captions of images that have two or three each, and about ``pairs`` in all."""
    images = pairs * 2 // 5
    column = np.lib.format.open_memmap(path, "w+", np.uint8, (images,))
    generator = np.random.default_rng(0)
    for part in chunks(column):
        part[:] = generator.integers(2, 4, len(part), np.uint8)
    column.flush()


def chunks(column: np.ndarray, size: int = 1 << 24) -> Iterable[np.ndarray]:
    return (column[start : start + size] for start in range(0, len(column), size))


def measured(path: Path, options: dict[str, Any]) -> str:
    """Return the cells of a row: seconds, milliseconds of the processor, megabytes."""
    from vse_scale.data.plan import Plan

    before = memory()
    began = time.perf_counter()
    column = np.load(path, mmap_mode="r")
    sizes = np.diff([*range(0, len(column), SHARD), len(column)])
    plan = Plan(column, seed=0, global_batch=BATCH, shard_sizes=sizes, **options)
    plan.part(0, 0, RANK, RANKS)
    first = time.perf_counter() - began
    later = []
    for step in range(1, min(STEPS, plan.steps_per_epoch)):
        began = time.process_time()  # waiting for others on this machine is not the order's
        plan.part(0, step, RANK, RANKS)
        later.append(1000 * (time.process_time() - began))
    return f"{first:.2f} | {np.median(later):.2f} ({max(later):.2f}) | {memory():.0f}, {before:.0f}"


def memory() -> float:
    """Return the most memory that this process has had, in units of 10**6 bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 / 1e6 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main(sys.argv[1:])
