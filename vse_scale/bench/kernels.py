"""Stage ``kernels``: pooling, mining and ranks against their formulation in torch.

The scripts in ``kernels/benchmarks`` measure; each also runs alone, and describes its comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row, read
from vse_scale.bench.scripts import run_script

SCRIPTS = ("gpo", "hardest", "ranks")


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows of each script's cases."""
    for script in SCRIPTS:
        out = job.scratch / f"{script}.csv"
        run_script(
            f"kernels/benchmarks/{script}.py",
            ["--device", job.device.type, "--repeats", job.repeats, "--out", out]
            + ["--small"] * job.small,
        )
        for _, case in itertools.groupby(read(out), key=lambda row: row.case):
            yield [_renamed(row) for row in case]


def _renamed(row: Row) -> Row:
    """Name this project in full, since "ours" is clear only beside the kernels."""
    return replace(row, implementation="vse_scale") if row.implementation == "ours" else row
