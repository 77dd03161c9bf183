"""The experiment on photos: names of rows, photos kept aside, and runs that go on from others."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from photo_heads import Settings
from PIL import Image

from vse_scale.data.shards import ShardDataset

SCRIPT = Path(__file__).parents[2] / "launch" / "photos_experiment.py"


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photos_experiment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses ask there
    spec.loader.exec_module(module)
    return module


def test_a_row_is_named_by_what_differs_from_the_baseline(experiment: ModuleType) -> None:
    assert experiment.changed(Settings()) == {}
    assert experiment.changed(Settings(whole=True, pool_rate=0.1, batch=320, drop=(0.5, 0.2))) == {
        "cells": "whole",
        "pool_rate": 0.1,
        "batch": 320,
        "drop": "0.5,0.2",
    }
    assert experiment.changed(Settings(captions=1, batch=128)) == {}


def test_photos_kept_aside_are_no_others(experiment: ModuleType, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    draws = np.random.default_rng(3)
    rows = []
    for number in range(12):
        name = f"{number}.jpg"
        pixels = draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / "images" / name)
        split = "val" if number % 4 == 0 else "train"
        rows.append({"image": name, "split": split, "captions": [f"photo {number}"]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (photos / "captions.jsonl").write_text(lines)
    experiment.lay_out_held(photos, tmp_path / "held", 4)
    shards = tmp_path / "held" / "shards"
    found = {}
    for split in ("train", "val", "test"):
        dataset = ShardDataset(shards, split)
        records = [dataset.record(index) for index in range(len(dataset))]
        found[split] = {record.captions[0].text for record in records}
    assert found["val"] == {f"photo {number}" for number in (0, 4, 8)}
    assert (len(found["train"]), len(found["test"])) == (5, 4)
    assert len(found["train"] | found["val"] | found["test"]) == 12
    # Drawn by a fixed seed, so that a second layout keeps the same photos aside.
    shutil.rmtree(shards)
    experiment.lay_out_held(photos, tmp_path / "held", 4)
    again = ShardDataset(shards, "test")
    assert {again.record(index).captions[0].text for index in range(4)} == found["test"]


def test_a_row_goes_on_from_its_own_seed(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], check: bool) -> None:
        commands.append(command)
        folder = Path(next(one for one in command if one.startswith("run.dir=")).split("=", 1)[1])
        folder.mkdir(parents=True)
        results = {"i2t": {"r1": 1.0}, "t2i": {"r1": 2.0}, "rsum": 3.0}
        (folder / "results.json").write_text(json.dumps(results))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    Path("data/photos/features").mkdir(parents=True)
    changes = ["model.init_from=runs/first-{seed}", "optim.lr=1"]
    options = ["--seeds", "7", "8", "--rows", "rows.csv"]
    monkeypatch.setattr(sys, "argv", ["photos_experiment.py", "recipe", "next", *changes, *options])
    experiment.main()
    assert [command[-4:] for command in commands] == [
        [
            f"run.dir=runs/photos-rows/next-{seed}",
            f"run.seed={seed}",
            f"model.init_from=runs/first-{seed}",
            "optim.lr=1",
        ]
        for seed in (7, 8)
    ]
    lines = experiment.seeds_by_row(Path("rows.csv"))["next"]
    assert [(one["seed"], one["i2t_r1"], one["t2i_r1"], one["rsum"]) for one in lines] == [
        (seed, "1.0", "2.0", "3.0") for seed in ("7", "8")
    ]
    assert lines[0]["settings"] == "model.init_from=runs/first-{seed} optim.lr=1"


def test_the_page_has_the_committed_rows(experiment: ModuleType, tmp_path: Path) -> None:
    """Every row with three seeds or more, and the table as it is computed from them."""
    root = SCRIPT.parents[1]
    rows = experiment.seeds_by_row(root / experiment.ROWS)
    assert all(len({one["seed"] for one in seeds}) == len(seeds) >= 3 for seeds in rows.values())
    page = tmp_path / "page.md"
    committed = (root / experiment.PAGE).read_text(encoding="utf-8")
    page.write_text(committed, encoding="utf-8")
    experiment.refresh(root / experiment.ROWS, page)
    assert page.read_text(encoding="utf-8") == committed


def test_a_row_of_the_table_is_the_mean_over_its_seeds(
    experiment: ModuleType, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    for seed, rsum in enumerate((10.0, 20.0)):
        experiment.append(experiment.Row("a", seed, "", 1.0, 2.0, rsum, 3.0, 4.0), rows)
        experiment.append(experiment.Row("b", seed, "", 1.0, 2.0, rsum + 1, 3.0, 4.0), rows)
    lines = experiment.table(rows).splitlines()
    assert lines[2:] == [
        "| b | 2 | 1.0 | 2.0 | 16.0 ± 7.1 | 3 |",
        "| a | 2 | 1.0 | 2.0 | 15.0 ± 7.1 | 3 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["heads"], "data/photos has no features; make photos PHOTOS=DIR lays them out"),
        (["heads", "--power", "0.5"], "data/photos has no features"),
        (["recipe", "a row"], "data/photos has no features"),
        (["held", "nowhere"], "nowhere has no captions.jsonl, whose rows name a split"),
        (["held", "few"], "few has 1 photos of split train; more than 500 are needed"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "captions.jsonl").write_text('{"image": "a.jpg", "split": "train", "captions": ["a"]}\n')
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
