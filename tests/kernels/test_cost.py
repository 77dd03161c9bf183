"""The predicted time of a launch: the model, and the figures in the kernels' README."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch

from vse_kernels.contrastive import choice as contrastive
from vse_kernels.cost import (
    H200,
    Tiles,
    by_pipe,
    floor,
    pipe_of,
    predict,
    predict_tiles,
    product_seconds,
)
from vse_kernels.hardest import choice


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


def test_a_tile_takes_its_loop_and_what_is_outside():
    """Of 128 x 64 scores, 8 warps: 256 clocks a step of 64 on tensor cores, 4 an instruction."""
    tiles = Tiles({"alu": 100}, {"alu": 10}, 8, 128, 64, 64)
    seconds, outside = predict_tiles(tiles, 128 * 132, 64, 640)
    assert seconds == pytest.approx((400 + 10 * 256) / H200.clock)
    assert outside == pytest.approx(400 / (400 + 2560))
    assert predict_tiles(tiles, 128 * 132 + 1, 64, 640)[0] == pytest.approx(2 * seconds)
    slow = Tiles({"alu": 100}, {"alu": 100}, 8, 128, 64, 64)
    assert predict_tiles(slow, 1, 1, 1)[0] == pytest.approx(800 / H200.clock)


def test_the_product_alone():
    """989 TFLOP/s at 1.83 GHz, as the data sheet has it."""
    flops = 2 * 4096**3 / product_seconds(4096, 4096, 4096) * 1.83e9 / H200.clock
    assert flops == pytest.approx(989.4e12, rel=1e-3)


README = Path(__file__).parents[2] / "kernels" / "README.md"
PREDICTED = re.compile(r"\| (forward|backward), K = (\d+), (\w+)(, pairs|, odd)? \|(.*)\|")
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


def test_programs_that_share_a_multiprocessor_hide_each_other():
    """Two of the tile above: tensor cores take longest for both; or one pipe; or each by itself."""
    given = {"warps": 8, "rows": 128, "columns": 64, "depth": 64, "resident": 2}
    seconds, _ = predict_tiles(Tiles({"alu": 100}, {"alu": 10}, **given), 128 * 132, 64, 640)
    assert seconds == pytest.approx(2560 / H200.clock)
    seconds, _ = predict_tiles(Tiles({"alu": 900}, {"alu": 10}, **given), 128 * 132, 64, 640)
    assert seconds == pytest.approx((3600 + 400) / H200.clock)
    seconds, _ = predict_tiles(Tiles({"alu": 900}, {"fma": 1}, **given), 128 * 132, 64, 640)
    assert seconds == pytest.approx(3600 / H200.clock)


def counts_of(words):
    """Instructions by pipe of a cell such as "alu 750 issue 1140"."""
    cells = words.split()
    return dict(zip(cells[::2], map(int, cells[1::2]), strict=True))


# Registers and shared memory of a multiprocessor; a program takes 1 KiB of that beside its own.
REGISTERS, SHARED_BYTES = 65536, 233472


def of_scores(report, dtype, blocks):
    """ALU instructions per score and predicted seconds, for 65,536 x 65,536 x 1,024."""
    by_registers = REGISTERS // (int(report["registers"]) * 32 * blocks.warps)
    by_memory = SHARED_BYTES // (int(report["shared_bytes"]) + 1024)
    once = counts_of(report["pipes"])
    # Three products of TF32, at half the rate each.
    times = 6 if dtype == torch.float32 else 1
    tiles = Tiles(
        once, counts_of(report["loop_pipes"]), blocks.warps,
        blocks.rows, blocks.columns, blocks.depth, times, min(by_registers, by_memory),
    )  # fmt: skip
    seconds, _ = predict_tiles(tiles, 65536, 65536, 1024)
    return once["alu"] * 32 / int(report["scores_per_warp"]), seconds


def of_mining(report, dtype):
    blocks = choice.blocks(dtype, 9)
    # A second program does not fit: what is outside of the loop is not hidden.
    assert 2 * int(report["registers"]) * 32 * blocks.warps > REGISTERS
    return of_scores(report, dtype, blocks)


MINING = re.compile(r"\| (both sides|rows alone), (\w+) \|(.*)\|")


def test_the_predictions_of_mining_in_the_readme(table):
    product = product_seconds(65536, 65536, 1024)
    lines = MINING.findall(README.read_text())
    assert len(lines) == 4
    for sides, dtype, cells in lines:
        name = f"hardest-{sides.split()[0]}-{DTYPES[dtype][0]}"
        per_score, seconds = of_mining(table[name], getattr(torch, dtype))
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{per_score:.1f}",
            f"{seconds * 1e3:.1f}",
            f"{seconds / product:.2f}" if dtype == "bfloat16" else "",
        ]


LOSSES = re.compile(r"\| (violations|sums|softmax|sigmoid), (one|several), (\w+) \|(.*)\|")


def of_loss(table, kind, captions, dtype):
    """As `of_scores`, of a pass over the scores for one or several captions an image."""
    short, dtype = DTYPES[dtype][0], getattr(torch, dtype)
    if kind == "violations":
        name, blocks = f"violations-{5 if captions == 'several' else 1}", choice.VIOLATIONS[dtype]
    else:
        name = f"contrast-{kind}{'-counted' if captions == 'several' else ''}"
        blocks = contrastive.blocks(kind, dtype, 9)
    return of_scores(table[f"{name}-{short}"], dtype, blocks)


def test_the_predictions_of_losses_in_the_readme(table):
    product = product_seconds(65536, 65536, 1024)
    lines = LOSSES.findall(README.read_text())
    assert len(lines) == 12
    for kind, captions, dtype, cells in lines:
        per_score, seconds = of_loss(table, kind, captions, dtype)
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{per_score:.1f}",
            f"{seconds * 1e3:.1f}",
            f"{seconds / product:.2f}" if dtype == "bfloat16" else "",
        ]


MOST = {
    ("violations", "bfloat16"): (1.3, 1.8),
    ("sums", "bfloat16"): (1.35, 1.35),
    ("softmax", "bfloat16"): (1.3, 1.3),
    ("sigmoid", "bfloat16"): (1.05, 1.05),
    # Three products of TF32 take six times as long.
    ("violations", "float32"): (6.9, 7.4),
    ("sums", "float32"): (6.7, 6.7),
    ("softmax", "float32"): (6.6, 6.6),
    ("sigmoid", "float32"): (6.9, 6.9),
}


@pytest.mark.parametrize(("kind", "dtype"), MOST)
def test_a_pass_of_a_loss_is_predicted_within_a_multiple_of_the_product(table, kind, dtype):
    """As of mining, at most 5% above what is predicted; the gradients' products are not in it."""
    product = product_seconds(65536, 65536, 1024)
    for captions, most in zip(("one", "several"), MOST[kind, dtype], strict=True):
        seconds = of_loss(table, kind, captions, dtype)[1]
        assert most / 1.06 < seconds / product <= most


def of_pooling(table, direction, positions, dtype, pairs):
    """ALU instructions per column, predicted seconds and the floor, for 256 x positions x 1,024."""
    short, size = DTYPES[dtype]
    kind = f"gpo-packed-{direction}" if pairs else f"gpo-{direction}"
    width = "-odd" if pairs == ", odd" else ""
    launched = f"{kind}-{positions}{width}-{short}"
    report = table.get(f"{kind}-{positions}-alone{width}-{short}") or table[launched]
    counts = counts_of(report["pipes"])
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


STEPS = [
    (positions, most, *kind)
    for kind in (("bfloat16", ", pairs"), ("bfloat16", ", odd"), ("float32", ""))
    for positions, most in ((36, 3), (64, 3), (128, 4), (256, 5))
    if (positions, kind[1]) != (128, ", odd")
]


@pytest.mark.parametrize(("positions", "most", "dtype", "pairs"), STEPS)
def test_a_training_step_is_predicted_within_a_multiple_of_memory(
    table, positions, most, dtype, pairs
):
    """Forward and backward: a kernel that grows shows here, without a GPU."""
    steps = [of_pooling(table, way, positions, dtype, pairs) for way in ("forward", "backward")]
    assert sum(seconds for _, seconds, _ in steps) <= most * sum(least for _, _, least in steps)
