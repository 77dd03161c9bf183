"""Stage ``kernels``: pooling, mining and ranks against their formulation in torch.

The scripts in ``kernels/benchmarks`` measure, each alone too, and say there what they compare.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import replace

from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row, row
from vse_scale.bench.scripts import run_script

SCRIPTS = ("gpo", "hardest", "ranks")


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows of each script's cases.

    The peak is what a call takes beyond its operands, on a GPU.
    """
    for script in SCRIPTS:
        out = job.scratch / f"{script}.csv"
        run_script(
            f"kernels/benchmarks/{script}.py",
            ["--device", job.device.type, "--repeats", job.repeats, "--out", out]
            + ["--small"] * job.small,
        )
        with out.open(newline="") as file:
            lines = list(csv.DictReader(file))
        for _, case in itertools.groupby(lines, key=_case):
            yield _rows(job, list(case))


def _case(line: dict[str, str]) -> str:
    return "{kernel} {mode}, {case}, {dtype}".format(**line)


def _rows(job: Job, lines: list[dict[str, str]]) -> list[Row]:
    """Turn a script's lines into rows; the first contender is the peer."""
    peer = lines[0]
    found = []
    for line in lines:
        made = row(
            job, "kernels", _case(line), _name(line), peer=_name(peer), unit="ms",
            values=[float(line["milliseconds"])], peer_values=[float(peer["milliseconds"])],
            peak_bytes=int(line["extra_bytes"]),
        )  # fmt: skip
        median, low, high = (float(line[key]) for key in ("milliseconds", "low", "high"))
        rounds = int(line["repeats"])
        found.append(replace(made, median=median, low=low, high=high, repeats=rounds))
    return found


def _name(line: dict[str, str]) -> str:
    return "vse_scale" if line["contender"] == "ours" else line["contender"]
