"""The examples run as they stand, on drawn scenes; the notebook's cells in their order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
QUICK = [
    "train.max_steps=2", "model.embed_dim=24", "model.image.size=32", "model.text.vocab_size=120",
    "model.text.architecture={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
]  # fmt: skip


def run(*arguments: object, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with data/mine and runs/mine, which the training example leaves, and its output."""
    folder = tmp_path_factory.mktemp("examples")
    source = scenes.parent / "source"
    script = EXAMPLES / "train_on_your_photos.py"
    files = [source / "captions.jsonl", source, "data/mine", "runs/mine"]
    return folder, run(script, *files, *QUICK, folder=folder)


def test_training(trained: tuple[Path, str]) -> None:
    folder, output = trained
    assert "plain: 20 images, 100 captions" in output
    assert "RSUM" in output
    assert (folder / "runs" / "mine" / "model" / "config.json").is_file()


def test_searching(trained: tuple[Path, str], scenes: Path) -> None:
    folder, _ = trained
    photos = scenes.parent / "source" / "images"
    script = EXAMPLES / "search_your_photos.py"
    lines = run(script, "runs/mine", photos, "a ring", "a star", folder=folder).splitlines()
    assert [lines[0], lines[6]] == ["a ring", "a star"]
    found = [line.split() for line in lines[1:6]]
    scores = [float(score) for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(file).is_file() for _, file in found)


@pytest.mark.slow
def test_from_zero_to_a_page(trained: tuple[Path, str], scenes: Path, tmp_path: Path) -> None:
    """The commands as they stand, but for `make photos`, which leaves the run of the fixture."""
    binaries, make = tmp_path / ".venv" / "bin", tmp_path / "bin" / "make"
    for folder in (tmp_path / "runs", binaries, make.parent):
        folder.mkdir(parents=True)
    (binaries / "vse-scale").symlink_to(Path(sys.executable).with_name("vse-scale"))
    make.write_text(f'#!/bin/sh\necho "$@" >made\nln -sfn {trained[0]}/runs/mine runs/photos\n')
    make.chmod(0o755)
    photos = scenes.parent / "source" / "images"
    done = subprocess.run(
        ["sh", EXAMPLES / "zero_to_search.sh", photos, "a ring"], cwd=tmp_path,
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "made").read_text() == f"photos PHOTOS={photos}\n"
    lines = done.stdout.splitlines()
    found = [line.split()[-1] for line in lines[lines.index("a ring") + 1 :][:8]]
    assert all((photos / Path(name).name).is_file() for name in found)
    page = (tmp_path / "found.html").read_text()
    assert "a ring" in page
    assert page.count("<img") == len(found) == 8


def test_comparing(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    shutil.copytree(folder / "runs" / "mine" / "model", folder / "again")
    script = EXAMPLES / "compare_two_models.py"
    output = run(script, "runs/mine", "again", "data/mine", "val", folder=folder)
    assert output.count("plain: 20 images, 100 captions") == 2
    assert "only again finds the photo of 0 captions" in output  # it is the same model


def test_the_scripts_are_short() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert len(script.read_text().splitlines()) <= 40, script.name


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        assert {"id", "cell_type", "metadata", "source"} <= cell.keys()
        assert cell["cell_type"] == "markdown" or cell["outputs"] == []
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    # One namespace, a cell after the other, as a notebook's kernel runs them.
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    script = "import json; space = {}\nfor cell in json.load(open('cells.json')): exec(cell, space)"
    output = run("-c", script, folder=tmp_path)
    assert "torch.Size([50, 2])" in output
    assert "plain: " in output
