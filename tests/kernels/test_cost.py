"""The predicted time of a launch: the model, and the figures in the kernels' README."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from vse_kernels.cost import H200, by_pipe, floor, pipe_of, predict


@pytest.mark.parametrize(
    ("operation", "pipe"),
    [
        ("HMNMX2", "alu"),
        ("VIMNMX", "alu"),
        ("IMAD", "imad"),
        ("FFMA", "fma"),
        ("LDG", "load_store"),
        ("SHFL", "shuffle"),
        ("HGMMA", "tensor"),
        ("UIADD3", "uniform"),
        ("EXIT", "control"),
    ],
)
def test_the_pipe_of_an_operation(operation, pipe):
    assert pipe_of(operation) == pipe


def test_counts_by_pipe():
    counts = by_pipe({"HMNMX2": 4, "IMAD": 3, "FFMA": 2, "NOP": 9})
    assert counts == {"alu": 4, "imad": 3, "fma": 5, "issue": 9}


def test_the_busiest_pipe_takes_the_time():
    """132 multiprocessors of 64 lanes: one instruction of 264 warps takes one clock."""
    seconds, busiest = predict({"alu": 100, "fma": 150, "issue": 150}, 264, 0)
    assert busiest == "alu"
    assert seconds == pytest.approx(100 / H200.clock)
    assert predict({"issue": 300, "alu": 100}, 264, 0) == (pytest.approx(150 / H200.clock), "issue")


def test_memory_bounds_from_below():
    assert predict({"alu": 1}, 1, 43_000_000) == (pytest.approx(1e-5), "memory")
    assert floor(43_000_000) == pytest.approx(1e-5)


README = Path(__file__).parents[2] / "kernels" / "README.md"
PREDICTED = re.compile(r"\| (forward|backward), K = (\d+), (\w+)(, pairs)? \|(.*)\|")


def test_the_predictions_in_the_readme():
    """Each line from the machine code in compiled.csv, for 256 samples of 1,024 columns."""
    with Path(__file__).with_name("compiled.csv").open(newline="") as file:
        table = {
            report["name"]: report
            for report in csv.DictReader(file)
            if (report["capability"], report["triton_version"]) == ("90", "3.7.1")
        }
    lines = PREDICTED.findall(README.read_text())
    assert len(lines) >= 6
    for direction, positions, dtype, pairs, cells in lines:
        short, size = {"bfloat16": ("bf16", 2), "float32": ("fp32", 4)}[dtype]
        kind = f"gpo-packed-{direction}" if pairs else f"gpo-{direction}"
        launched = f"{kind}-{positions}-{short}"
        report = table.get(f"{kind}-{positions}-alone-{short}", table[launched])
        words = report["pipes"].split()
        counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        columns = int(report["columns_per_warp"])
        moved = 256 * int(positions) * 1024 * size * (1 + (direction == "backward"))
        seconds, busiest = predict(counts, 256 * 1024 // columns, moved)
        least = floor(moved)
        assert busiest == "alu"
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{counts['alu'] * 32 // columns:,}",
            f"{seconds * 1e6:.1f}",
            f"{least * 1e6:.1f}",
            f"{seconds / least:.2f}",
        ]
