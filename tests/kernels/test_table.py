"""The table of the benchmarks: ratios to the peer of the same case, memory without results."""

from __future__ import annotations

import runpy
from pathlib import Path

TABLE = runpy.run_path(str(Path(__file__).parents[2] / "kernels/benchmarks/table.py"))


def row(contender, milliseconds, extra, results, kernel="hardest_negatives", case="1000x2000x50"):
    return {
        "kernel": kernel,
        "case": case,
        "dtype": "float32",
        "mode": "forward",
        "contender": contender,
        "milliseconds": str(milliseconds),
        "extra_bytes": str(extra),
        "result_bytes": str(results),
        "device": "a",
        "threads": "1",
        "commit": "b",
    }


def test_ratios_to_the_peer():
    mib = 2**20
    product, ours = TABLE["lines"]([row("product", 4, 9 * mib, mib), row("ours", 2, 4 * mib, 0)])
    assert product[5:] == ("4.000", "1.00x", "8.0", "1.000", "1.0", "0.05")
    assert ours[5:] == ("2.000", "2.00x", "4.0", "0.500", "0.0", "0.1")


def test_memory_that_was_not_measured():
    (line,) = TABLE["lines"]([row("ours", 2, -1, -1, kernel="gpo_pool")])
    assert line[5:] == ("2.000", "1.00x", "", "", "", "")
