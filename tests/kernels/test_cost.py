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
DTYPES = {"bfloat16": ("bf16", 2), "float32": ("fp32", 4)}


@pytest.fixture(scope="module")
def table():
    """The rows of compiled.csv on sm_90a, by name."""
    with Path(__file__).with_name("compiled.csv").open(newline="") as file:
        return {
            report["name"]: report
            for report in csv.DictReader(file)
            if (report["capability"], report["triton_version"]) == ("90", "3.7.1")
        }


def of_pooling(table, direction, positions, dtype, pairs):
    """ALU instructions per column, predicted seconds and the floor, for 256 x positions x 1,024."""
    short, size = DTYPES[dtype]
    kind = f"gpo-packed-{direction}" if pairs else f"gpo-{direction}"
    launched = f"{kind}-{positions}-{short}"
    report = table.get(f"{kind}-{positions}-alone-{short}") or table[launched]
    words = report["pipes"].split()
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    columns = int(report["columns_per_warp"])
    moved = 256 * positions * 1024 * size * (1 + (direction == "backward"))
    seconds, busiest = predict(counts, 256 * 1024 // columns, moved)
    assert busiest == "alu"
    return counts["alu"] * 32 // columns, seconds, floor(moved)


def test_the_predictions_in_the_readme(table):
    """Each line from the machine code in compiled.csv."""
    lines = PREDICTED.findall(README.read_text())
    assert len(lines) >= 16
    for direction, positions, dtype, pairs, cells in lines:
        per_column, seconds, least = of_pooling(table, direction, int(positions), dtype, pairs)
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{per_column:,}",
            f"{seconds * 1e6:.1f}",
            f"{least * 1e6:.1f}",
            f"{seconds / least:.2f}",
        ]


@pytest.mark.parametrize(("dtype", "pairs"), [("bfloat16", True), ("float32", False)])
@pytest.mark.parametrize(("positions", "most"), [(36, 3), (64, 3), (128, 4), (256, 5)])
def test_a_training_step_is_predicted_within_a_multiple_of_memory(
    table, positions, most, dtype, pairs
):
    """Forward and backward: a kernel that grows shows here, without a GPU."""
    steps = [of_pooling(table, way, positions, dtype, pairs) for way in ("forward", "backward")]
    assert sum(seconds for _, seconds, _ in steps) <= most * sum(least for _, _, least in steps)
