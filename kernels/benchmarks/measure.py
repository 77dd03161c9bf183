"""Timing of implementations in turns, and one CSV schema for the results of all kernels."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles

import torch

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """Result of one implementation on one case.

    Attributes:
        kernel: the public function.
        contender: name of the implementation.
        case: shapes, such as "256x36x1024".
        dtype: dtype of the operands.
        mode: timed operation, such as "inference" or "training".
        milliseconds: median over the repeats.
        low: first decile of the repeats, milliseconds.
        high: ninth decile, milliseconds.
        extra_bytes: peak memory beyond the operands; -1 if not measured (on CPU).
        result_bytes: the part of it that any implementation must store, the result; -1 likewise.
        repeats: number of timed calls.
        device: GPU or CPU model.
        threads: CPU threads.
        torch_version: version of torch.
        triton_version: version of triton, "none" if it is not installed.
        commit: short hash, "-dirty" if the tree differs from it.
    """

    kernel: str
    contender: str
    case: str
    dtype: str
    mode: str
    milliseconds: float
    low: float
    high: float
    extra_bytes: int
    result_bytes: int
    repeats: int
    device: str
    threads: int
    torch_version: str
    triton_version: str
    commit: str


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to rehearse the script")
    parser.add_argument("--out", type=Path, help="CSV to append to")
    return parser.parse_args()


def compare(
    implementations: dict[str, Callable[[], object]],
    *,
    kernel: str,
    case: str,
    dtype: torch.dtype,
    mode: str,
    options: argparse.Namespace,
) -> dict[str, Row]:
    """Time implementations in turns, so that other load on the machine affects all alike."""
    device = torch.device(options.device)
    memory = {name: _memory(call, device) for name, call in implementations.items()}
    times: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(options.repeats):
        for name, call in implementations.items():
            times[name].append(_milliseconds(call, device))
    rows = {}
    for name, values in times.items():
        deciles = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        rows[name] = Row(
            kernel=kernel,
            contender=name,
            case=case,
            dtype=str(dtype).removeprefix("torch."),
            mode=mode,
            milliseconds=round(median(values), 4),
            low=round(deciles[0], 4),
            high=round(deciles[-1], 4),
            extra_bytes=memory[name][0],
            result_bytes=memory[name][1],
            repeats=len(values),
            device=_device_name(device),
            threads=torch.get_num_threads(),
            torch_version=torch.__version__,
            triton_version=_triton_version(),
            commit=_commit(),
        )
    _print(rows.values(), next(iter(rows)))
    if options.out:
        append(options.out, rows.values())
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append to a CSV, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call; on a GPU by device events, with cold caches.

    Filling 1 GiB evicts L2, and lasts long enough for the host to queue the whole call.
    """
    if device.type == "cuda":
        torch.zeros(1 << 30, dtype=torch.uint8, device=device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)


def _memory(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Return a call's peak bytes beyond those held before it, and its result's; also warms up."""
    call()
    if device.type != "cuda":
        return -1, -1
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    results = result if isinstance(result, tuple) else (result,)
    size = sum(part.nbytes for part in results if isinstance(part, torch.Tensor))
    return torch.cuda.max_memory_allocated() - before, size


def _print(rows: Iterable[Row], base: str) -> None:
    rows = list(rows)
    reference = next(row for row in rows if row.contender == base)
    for row in rows:
        memory = "" if row.extra_bytes < 0 else f"{row.extra_bytes / 2**20:10.1f} MiB"
        ratio = reference.milliseconds / row.milliseconds
        print(
            f"{row.kernel:18} {row.case:18} {row.dtype:9} {row.mode:10} {row.contender:10} "
            f"{row.milliseconds:11.3f} ms [{row.low:.3f}, {row.high:.3f}] "
            f"{ratio:6.2f}x of {base}{memory}",
            flush=True,
        )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} CPUs"
    return platform.processor() or platform.machine()


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
        cwd=FOLDER,
        check=False,
    )
    return done.stdout.strip() or "unknown"
