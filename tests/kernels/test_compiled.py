"""Every shipped configuration, compiled ahead of time, against the table of limits.

VSE_KERNELS_PYTHON names another interpreter to compile with, such as that of an environment with
the oldest triton that is supported.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.limits import LIMITS, limit_of

SCRIPT = Path(__file__).with_name("compiled.py")
ROOT = SCRIPT.parents[2]
PYTHON = os.environ.get("VSE_KERNELS_PYTHON", sys.executable)


def reports(*arguments, kernels=ROOT / "kernels"):
    """What `compiled.py` says about the configurations that match, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(kernels)
    done = subprocess.run(
        [PYTHON, SCRIPT, *map(str, arguments)],
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


def alu_per_score(report):
    """Instructions of the integer pipe per score, outside of the loop that multiplies."""
    scores = report["scores_per_warp"]
    return pipes(report)["alu"] * 32 / scores if scores else 0


def breaches(report, capability):
    """Which limits a report breaks, in words."""
    limit = limit_of(report["name"], capability)
    found = [f"spills {report['spills']}, allowed 0"] if report["spills"] else []
    used = report | {"alu_per_column": alu_per_column(report)}
    used["alu_per_score"] = alu_per_score(report)
    for key in ("registers", "shared_bytes", "instructions", "alu_per_column", "alu_per_score"):
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
    """Regions in pairs, two backward passes, mining and losses with tensor cores; in seconds."""
    expect_within_limits(
        90,
        "gpo-packed-forward-36-alone-bf16",
        "gpo-packed-backward-8-bf16",
        "gpo-backward-8-fp32",
        "gpo-reduce",
        "hardest-*both-bf16",
        "violations-5-bf16",
        "contrast-softmax-bf16",
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_a_gpu_trains_with():
    """The sizes of regions and grids; the others are compiled in the soak."""
    pooling = ("gpo-packed-*-36", "gpo-packed-forward-64-alone", "gpo-packed-*-256")
    pairs = [f"{kind}-bf16" for kind in (*pooling, "hardest-*", "violations-*", "contrast-*")]
    expect_within_limits(90, *pairs, "gpo-*-36-alone-fp32", "gpo-*-256-fp32")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_configuration(capability, dtype):
    expect_within_limits(capability, f"*-{dtype}")


def committed():
    with (SCRIPT.parent / "compiled.csv").open(newline="") as file:
        return read(file)


def digests_of(**options):
    """The digest of each configuration, by name and capability."""
    return {
        (report["name"], report["capability"]): report["digest"]
        for report in reports("--digests", **options)
    }


@pytest.fixture(scope="module")
def digests():
    return digests_of()


def test_the_committed_table_keeps_the_limits(digests):
    """compiled.csv holds every configuration, and some by another triton."""
    table = committed()
    assert [text for report in table for text in breaches(report, report["capability"])] == []
    for capability in (80, 90, 100):
        names = [
            report["name"]
            for report in table
            if report["capability"] == capability and report["triton_version"] == "3.7.1"
        ]
        needed = {name for name, of in digests if of == capability}
        assert len(names) == len(set(names))
        assert needed - set(names) == set()


def test_the_committed_table_is_of_this_code(digests):
    """A kernel whose code changes needs its rows anew; the digest of its code says so at once."""
    stale = {
        f"{report['name']} on {report['capability']} by {report['triton_version']}"
        for report in committed()
        if report["digest"] != digests[report["name"], report["capability"]]
    }
    assert stale == set(), "compile these by tests/kernels/compiled.py, and replace their rows"


def test_a_digest_follows_the_code_and_not_its_comments(digests, tmp_path):
    shutil.copytree(ROOT / "kernels/vse_kernels", tmp_path / "vse_kernels")
    changes = {
        "gpo/registers.py": ("x[PAIRS[s][0]], x[PAIRS[s][1]],", "x[PAIRS[s][1]], x[PAIRS[s][0]],"),
        "gpo/choice.py": ("LARGEST_PART = 32", "LARGEST_PART = 16"),
        "hardest/triton.py": ("    # ", "    # Not only "),
    }
    for name, (before, after) in changes.items():
        path = tmp_path / "vse_kernels" / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
    changed = digests_of(kernels=tmp_path)
    kept = {name for (name, _), digest in digests.items() if digest in changed.values()}
    same = ("hardest", "violations", "contrast", "gpo-reduce")
    assert kept == {name for name, _ in digests if name.startswith(same)}


def test_limits_are_the_largest_figures():
    """As the table of limits says of itself: it follows when figures fall, too."""
    largest = {}
    for report in committed():
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
        "pipes": "alu 1280 issue 1900",
        "columns_per_warp": 0,
        "scores_per_warp": 4096,
    }
    assert breaches(report, 90) == [
        "hardest-both-bf16 on sm_90: spills 3, allowed 0",
        "hardest-both-bf16 on sm_90: registers 300, allowed 240",
        "hardest-both-bf16 on sm_90: alu_per_score 10.0, allowed 9",
        "hardest-both-bf16 on sm_90: no HGMMA",
    ]
    report |= {"name": "gpo-packed-forward-36-alone-bf16", "spills": 0, "registers": 56}
    report |= {"tensor_core": "", "shared_bytes": 0, "columns_per_warp": 32, "scores_per_warp": 0}
    report["pipes"] = "alu 800 issue 900"
    assert breaches(report, 90) == [
        "gpo-packed-forward-36-alone-bf16 on sm_90: alu_per_column 800, allowed 400",
        "gpo-packed-forward-36-alone-bf16 on sm_90: packed_minima 0, needed 482",
    ]
