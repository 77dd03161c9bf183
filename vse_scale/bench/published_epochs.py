"""Whole epochs of the published code and of this project's `train`, each validated by itself."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch

from vse_scale.bench.comparison import Sample
from vse_scale.bench.published import Setting, their_figures
from vse_scale.bench.published_training import PublishedTraining
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.retrieval.metrics import DIRECTIONS
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training.setup import make_plan
from vse_scale.training.trainer import train


@dataclass(frozen=True)
class Row:
    """A validation after an epoch.

    Attributes:
        code: "published" or "vse_scale".
        seed: of the first weights, the order, the words and the dropped regions, alike for both.
        epoch: counted from 1.
        i2t_r1: R@1 from image to text, in percent.
        t2i_r1: R@1 from text to image.
        rsum: the sum of R@1, 5 and 10 both ways.
        cpu_seconds: of the process since it began to train.
    """

    code: str
    seed: int
    epoch: int
    i2t_r1: float
    t2i_r1: float
    rsum: float
    cpu_seconds: float


def append(file: Path, row: Row) -> None:
    """Add a row to a CSV file, below a header."""
    fields = {key: round(value, 2) if isinstance(value, float) else value
              for key, value in asdict(row).items()}  # fmt: skip
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(fields)


def table(file: Path) -> list[str]:
    """Return lines of Markdown: of each code the best validations of its seeds, their mean.

    RSUM with its standard deviation over the seeds, if there are several.
    """
    with file.open(newline="", encoding="utf-8") as rows:
        found = list(csv.DictReader(rows))
    lines = ["| | seeds | R@1 image to text | R@1 text to image | RSUM |", "|---|---|---|---|---|"]
    for code in dict.fromkeys(row["code"] for row in found):
        best: dict[str, dict[str, str]] = {}
        for row in (row for row in found if row["code"] == code):
            kept = best.setdefault(row["seed"], row)
            best[row["seed"]] = max(kept, row, key=lambda one: float(one["rsum"]))
        i2t, t2i, rsums = (
            [float(row[key]) for row in best.values()] for key in ("i2t_r1", "t2i_r1", "rsum")
        )
        spread = f" ± {stdev(rsums):.1f}" if len(rsums) > 1 else ""
        lines.append(
            f"| {code} | {len(best)} | {mean(i2t):.1f} | {mean(t2i):.1f} | "
            f"{mean(rsums):.1f}{spread} |"
        )
    return lines


def their_epochs(setting: Setting, epochs: int, file: str) -> Iterator[Sample]:
    """Train by the published code, and append a row to ``file`` after each epoch."""
    torch.set_num_threads(1)
    tokenizer = CaptionTokenizer.load(setting.folder / "start")
    plan = make_plan(setting.config("plan"), ShardDataset(setting.shards, "train"))
    training = PublishedTraining(setting, epochs * plan.steps_per_epoch)
    began = time.process_time()
    for epoch in range(epochs):
        for _ in range(plan.steps_per_epoch):
            training.step()
        figures = their_figures(training.code.evaluation, *training.code.embed(setting, tokenizer))
        recalls = [*figures[:3], *figures[5:8]]
        seconds = time.process_time() - began
        row = Row(
            "published", setting.seed, epoch + 1, recalls[0], recalls[3], sum(recalls), seconds
        )
        append(Path(file), row)
    while True:
        yield Sample(1, 1)


def our_epochs(setting: Setting, epochs: int, file: str) -> Iterator[Sample]:
    """Train by `train`, and append a row to ``file`` after each epoch."""
    torch.set_num_threads(1)
    given = "eval.split=test", f"train.epochs={epochs}"
    config = replace(setting, overrides=(*setting.overrides, *given)).config(f"run-{setting.seed}")
    train(config, [_Rows(setting.seed, Path(file))])
    while True:
        yield Sample(1, 1)


class _Rows:
    """Appends a row after each validation of a run."""

    def __init__(self, seed: int, file: Path) -> None:
        self._seed, self._file = seed, file
        self._began = time.process_time()

    def evaluation(self, record: EvaluationRecord) -> None:
        i2t, t2i = (record.recalls[direction]["r1"] for direction in DIRECTIONS)
        seconds = time.process_time() - self._began
        row = Row("vse_scale", self._seed, record.epoch + 1, i2t, t2i, record.rsum, seconds)
        append(self._file, row)

    def step(self, record: StepRecord) -> None:
        pass

    def checkpoint(self, path: Path, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass
