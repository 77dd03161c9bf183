"""Every shipped configuration, compiled ahead of time, against the table of limits.

VSE_KERNELS_PYTHON names another interpreter to compile with, such as that of an environment with
the oldest triton that is supported.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.limits import LIMITS, limit_of
from vse_kernels.gpo.choice import (
    FORWARD_LANES,
    NETWORK_SIZES,
    PACKED_SIZES,
    packed_backward_launch,
)

SCRIPT = Path(__file__).with_name("compiled.py")
PYTHON = os.environ.get("VSE_KERNELS_PYTHON", sys.executable)


def reports(capability, *patterns):
    """What `compiled.py` says about the configurations that match, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = SCRIPT.parents[2]
    environment["PYTHONPATH"] = str(root / "kernels")
    done = subprocess.run(
        [PYTHON, SCRIPT, str(capability), *patterns],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return read(done.stdout.splitlines())


def read(lines):
    return [
        {key: int(value) if value.isdecimal() else value for key, value in line.items()}
        for line in csv.DictReader(lines)
    ]


def pipes(report):
    """Instructions of a warp by pipe."""
    words = report["pipes"].split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def alu_per_column(report):
    """Instructions of the integer pipe, a warp's divided by its columns per lane."""
    columns = report["columns_per_warp"]
    return pipes(report)["alu"] * 32 // columns if columns and report["pipes"] else 0


def breaches(report, capability):
    """Which limits a report breaks, in words."""
    limit = limit_of(report["name"], capability)
    found = [f"spills {report['spills']}, allowed 0"] if report["spills"] else []
    used = report | {"alu_per_column": alu_per_column(report)}
    for key in ("registers", "shared_bytes", "instructions", "alu_per_column"):
        if used[key] > getattr(limit, key):
            found.append(f"{key} {used[key]}, allowed {getattr(limit, key)}")
    for key in ("wide_addresses", "packed_minima"):
        if report[key] < getattr(limit, key):
            found.append(f"{key} {report[key]}, needed {getattr(limit, key)}")
    if limit.tensor_core and limit.tensor_core not in report["tensor_core"].split():
        found.append(f"no {limit.tensor_core}")
    return [f"{report['name']} on sm_{capability}: {text}" for text in found]


def expect_within_limits(capability, *patterns):
    compiled = reports(capability, *patterns)
    assert compiled
    assert [text for report in compiled for text in breaches(report, capability)] == []


@pytest.mark.timeout(900)
def test_the_commonest_on_hopper():
    """Regions in pairs, forward; two backward passes; mining with its tensor cores; in seconds."""
    expect_within_limits(
        90,
        "gpo-packed-forward-36-alone-bf16",
        "gpo-packed-backward-8-bf16",
        "gpo-backward-8-fp32",
        "gpo-reduce",
        "hardest-*both-bf16",
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_a_gpu_trains_with():
    """The sizes of regions and grids; the others are compiled in the soak."""
    pooling = ("gpo-packed-*-36", "gpo-packed-forward-64-alone", "gpo-packed-*-256")
    expect_within_limits(90, *(f"{kind}-bf16" for kind in (*pooling, "hardest-*")))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_configuration(capability, dtype):
    expect_within_limits(capability, f"*-{dtype}")


def test_the_committed_table_keeps_the_limits():
    """compiled.csv holds every configuration on each architecture, and some by another triton."""
    with (SCRIPT.parent / "compiled.csv").open(newline="") as file:
        table = read(file)
    assert [text for report in table for text in breaches(report, report["capability"])] == []
    for capability in (80, 90, 100):
        names = [
            report["name"]
            for report in table
            if report["capability"] == capability and report["triton_version"] == "3.7.1"
        ]
        # Pairs forward and backward, four of them in float16 too; on one architecture five more,
        # and three with one network alone.
        forward = (*PACKED_SIZES, *FORWARD_LANES)
        packed = len(forward) + len({packed_backward_launch(size).size for size in forward})
        packed += 12 if capability == 90 else 4
        assert len(names) == len(set(names)) == 2 * 3 * (len(NETWORK_SIZES) + 2) + packed + 1 + 12


def test_limits_are_the_largest_figures():
    """As the table of limits says of itself: it follows when figures fall, too."""
    largest = {}
    with (SCRIPT.parent / "compiled.csv").open(newline="") as file:
        for report in read(file):
            limit = limit_of(report["name"], report["capability"])
            registers, shared = largest.get(limit, (0, 0))
            found = (max(registers, report["registers"]), max(shared, report["shared_bytes"]))
            largest[limit] = found
    assert set(largest) == set(LIMITS)
    for limit, (registers, shared) in largest.items():
        assert limit.registers == min(255, -(-registers // 8) * 8), limit.patterns
        assert limit.shared_bytes == shared, limit.patterns


def test_a_breach_is_told_in_words():
    report = {
        "name": "hardest-both-bf16",
        "registers": 300,
        "spills": 3,
        "shared_bytes": 98304,
        "instructions": 1,
        "tensor_core": "HMMA",
        "wide_addresses": 6,
        "packed_minima": 0,
        "pipes": "alu 800 issue 900",
        "columns_per_warp": 0,
    }
    assert breaches(report, 90) == [
        "hardest-both-bf16 on sm_90: spills 3, allowed 0",
        "hardest-both-bf16 on sm_90: registers 300, allowed 248",
        "hardest-both-bf16 on sm_90: no HGMMA",
    ]
    report |= {"name": "gpo-packed-forward-36-alone-bf16", "spills": 0, "registers": 56}
    report |= {"tensor_core": "", "shared_bytes": 0, "columns_per_warp": 32}
    assert breaches(report, 90) == [
        "gpo-packed-forward-36-alone-bf16 on sm_90: alu_per_column 800, allowed 400",
        "gpo-packed-forward-36-alone-bf16 on sm_90: packed_minima 0, needed 482",
    ]
