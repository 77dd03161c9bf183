"""Print a CSV of results as a table: speed and memory relative to the peer, and TFLOP/s.

python kernels/benchmarks/table.py FILE.csv
"""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from pathlib import Path

HEADER = ("kernel", "case", "dtype", "mode", "contender")
HEADER += ("ms", "speed", "MiB", "memory", "MiB of results", "TFLOP/s")
PRODUCTS = ("hardest_negatives", "retrieval_ranks")


def lines(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Return one line per row; "speed" and "memory" are relative to the case's first row.

    MiB count peak memory beyond operands and results.
    """
    found = []
    names = ("kernel", "case", "dtype", "mode", "device", "threads", "commit")
    for _, group in groupby(rows, key=lambda row: tuple(row[name] for name in names)):
        group_rows = list(group)
        peer_time, peer_memory = float(group_rows[0]["milliseconds"]), memory(group_rows[0])
        for row in group_rows:
            time, extra = float(row["milliseconds"]), memory(row)
            measured = extra is not None and peer_memory
            found.append(
                (
                    *(row[name] for name in HEADER[:5]),
                    f"{time:.3f}",
                    f"{peer_time / time:.2f}x",
                    "" if extra is None else f"{extra / 2**20:.1f}",
                    f"{extra / peer_memory:.3f}" if measured else "",
                    "" if extra is None else f"{float(row['result_bytes']) / 2**20:.1f}",
                    f"{operations(row) / time / 1e9:.3g}" if operations(row) else "",
                )
            )
    return found


def memory(row: dict[str, str]) -> float | None:
    """Return the peak bytes beyond operands and results, or None if not measured."""
    extra, results = float(row["extra_bytes"]), float(row["result_bytes"])
    return None if min(extra, results) < 0 else extra - results


def operations(row: dict[str, str]) -> float:
    """Return the floating-point operations of the case's matrix product, 0 without one."""
    if row["kernel"] not in PRODUCTS:
        return 0.0
    rows, columns, width = (int(size) for size in row["case"].split("x"))
    return 2.0 * rows * columns * width


def main(path: Path) -> None:
    """Print the table, and the machines of its measurements."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = [HEADER, *lines(rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for machine in sorted(
        {(row["device"], row["torch_version"], row["triton_version"]) for row in rows}
    ):
        print("{}, torch {}, triton {}".format(*machine))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
