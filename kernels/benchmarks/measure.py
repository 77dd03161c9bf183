"""Time implementations in turns within one process, and append the results to a CSV."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from vse_kernels.measurements import Row, append, make_row


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
    """Time implementations in turns, so that other load on the machine affects all alike.

    Args:
        implementations: calls by name; the first is the peer of the others.
        kernel: the public function.
        case: shapes, such as "256x36x1024".
        dtype: dtype of the operands.
        mode: timed operation, such as "inference" or "training".
        options: of `arguments`.
    """
    device = torch.device(options.device)
    memory = {name: _memory(call, device) for name, call in implementations.items()}
    times: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(options.repeats):
        for name, call in implementations.items():
            times[name].append(_milliseconds(call, device))
    peer = next(iter(implementations))
    rows = {
        name: make_row(
            "kernels",
            f"{kernel} {mode}, {case}, {str(dtype).removeprefix('torch.')}",
            name,
            peer=peer,
            unit="ms",
            values=values,
            peer_values=times[peer],
            device=device,
            threads=torch.get_num_threads(),
            peak_bytes=memory[name][0],
            result_bytes=memory[name][1],
        )
        for name, values in times.items()
    }
    _print(rows.values())
    if options.out:
        append(options.out, rows.values())
    return rows


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


def _print(rows: Iterable[Row]) -> None:
    for row in rows:
        memory = "" if row.peak_bytes < 0 else f"{row.peak_bytes / 2**20:10.1f} MiB"
        print(
            f"{row.case:50} {row.implementation:10} {row.median:11.3f} ms "
            f"[{row.low:.3f}, {row.high:.3f}] {row.times:6.2f}x of {row.peer}{memory}",
            flush=True,
        )
