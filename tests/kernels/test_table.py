"""The table of the benchmarks: ratios to the peer of the same case, memory without results."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

from vse_kernels.measurements import make_row

BENCHMARKS = Path(__file__).parents[2] / "kernels/benchmarks"
TABLE = runpy.run_path(str(BENCHMARKS / "table.py"))


def row(implementation, milliseconds, extra, results, kernel="hardest_negatives"):
    return make_row(
        "kernels", f"{kernel} forward, 1000x2000x50, float32", implementation,
        peer="product", unit="ms", values=[milliseconds], peer_values=[1.0],
        device=torch.device("cpu"), threads=1, peak_bytes=extra, result_bytes=results,
    )  # fmt: skip


def test_ratios_to_the_peer():
    mib = 2**20
    product, ours = TABLE["lines"]([row("product", 4, 9 * mib, mib), row("ours", 2, 4 * mib, 0)])
    assert product[2:] == ("4.000", "1.00x", "8.0", "1.000", "1.0", "0.05")
    assert ours[2:] == ("2.000", "2.00x", "4.0", "0.500", "0.0", "0.1")


def test_memory_that_was_not_measured():
    (line,) = TABLE["lines"]([row("ours", 2, -1, -1, kernel="gpo_pool")])
    assert line[2:] == ("2.000", "1.00x", "", "", "", "")


def test_the_committed_results_are_read_in_their_former_columns():
    path = BENCHMARKS / "results.csv"
    lines = path.read_text().splitlines()
    assert lines[0].startswith("kernel,contender,case,")
    rows = TABLE["load"](path)
    assert len(rows) == len(lines) - 1
    # The first line of the file, by eye.
    assert rows[0].case == "gpo_pool inference, 64x36x1024, float32"
    assert (rows[0].implementation, rows[0].median) == ("published", 60.7311)
    assert len(TABLE["lines"](rows)) == len(rows)
