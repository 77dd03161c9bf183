"""Print a CSV of results as a table: speed and memory relative to the peer, and TFLOP/s.

python kernels/benchmarks/table.py FILE.csv
"""

from __future__ import annotations

import csv
import re
import sys
from itertools import groupby
from pathlib import Path

from vse_kernels.measurements import Row, read

HEADER = ("case", "implementation", "ms", "speed", "MiB", "memory", "MiB of results", "TFLOP/s")
# A matrix product of M x E by E x N, the work of these kernels, in the case's name as MxNxE.
_PRODUCT = re.compile(r"(?:hardest_negatives|retrieval_ranks) .*?, (\d+)x(\d+)x(\d+), ")


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return one line per row; "speed" and "memory" are relative to the case's first row.

    MiB count peak memory beyond operands and results.
    """
    found = []
    for _, group in groupby(rows, key=lambda row: (row.case, row.device, row.threads, row.commit)):
        case_rows = list(group)
        peer_memory = memory(case_rows[0])
        for row in case_rows:
            extra = memory(row)
            measured = extra is not None and peer_memory
            found.append(
                (
                    row.case,
                    row.implementation,
                    f"{row.median:.3f}",
                    f"{case_rows[0].median / row.median:.2f}x",
                    "" if extra is None else f"{extra / 2**20:.1f}",
                    f"{extra / peer_memory:.3f}" if measured else "",
                    "" if extra is None else f"{row.result_bytes / 2**20:.1f}",
                    f"{operations(row) / row.median / 1e9:.3g}" if operations(row) else "",
                )
            )
    return found


def memory(row: Row) -> int | None:
    """Return the peak bytes beyond operands and results, or None if not measured."""
    return None if min(row.peak_bytes, row.result_bytes) < 0 else row.peak_bytes - row.result_bytes


def operations(row: Row) -> float:
    """Return the floating-point operations of the case's matrix product, 0 without one."""
    found = _PRODUCT.match(row.case)
    if found is None:
        return 0.0
    rows, columns, width = map(int, found.groups())
    return 2.0 * rows * columns * width


def load(path: Path) -> list[Row]:
    """Return the rows of a CSV, also of one with the columns of releases before 0.2."""
    with path.open(newline="") as file:
        old = list(csv.DictReader(file))
    if not old or "kernel" not in old[0]:
        return read(path)
    return [_converted(line) for line in old]


def _converted(line: dict[str, str]) -> Row:
    return Row(
        stage="kernels",
        case="{kernel} {mode}, {case}, {dtype}".format(**line),
        implementation=line["contender"],
        peer="",
        unit="ms",
        median=float(line["milliseconds"]),
        low=float(line["low"]),
        high=float(line["high"]),
        times=float("nan"),
        peak_bytes=int(line["extra_bytes"]),
        shares="",
        repeats=int(line["repeats"]),
        device=line["device"],
        threads=int(line["threads"]),
        torch=line["torch_version"],
        triton=line["triton_version"],
        deepspeed="none",
        dali="none",
        opencv="none",
        commit=line["commit"],
        result_bytes=int(line["result_bytes"]),
    )


def main(path: Path) -> None:
    """Print the table, and the machines of its measurements."""
    rows = load(path)
    table = [HEADER, *lines(rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for machine in sorted({(row.device, row.torch, row.triton) for row in rows}):
        print("{}, torch {}, triton {}".format(*machine))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
