"""Refusals of the command, in one line; and a rehearsal of every stage."""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import torch

from vse_scale.bench import stages
from vse_scale.bench.job import Job
from vse_scale.bench.rows import Row
from vse_scale.cli import main


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """Run the command; return the one line that it leaves with code 2."""
    monkeypatch.setattr(sys, "argv", ["vse-scale", "bench", *map(str, arguments)])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        main()
    signal.signal(signal.SIGTERM, handler)
    assert left.value.code == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "error: " in s]
    return line


def test_wrong_input_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def said(*arguments: str | Path) -> str:
        return refused(monkeypatch, capsys, *arguments)

    assert "lodaer: there is no such stage; choose from loader, " in said("lodaer")
    assert "ends in neither .svg nor .png" in said("decode", "--plot", tmp_path / "plot.pdf")
    assert "there is no folder" in said("decode", "--out", tmp_path / "no" / "out.csv")
    assert "nowhere" in said("decode", "--data", "nowhere")
    assert "unknown key data.thread" in said("decode", "--data", photos, "data.thread=1")
    assert "is regions" in said("decode", "--data", photos, "model.image.backbone=regions")
    assert "which the plain-torch peer lacks; set gpo" in said(
        "step", "--small", "--data", photos, "model.pool=mean"
    )
    assert "not divisible by 2 ranks; set 20 or 22" in said(
        "train", "--small", "--data", photos, "data.global_batch=21"
    )


def test_without_opencv_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cv2" else found(name)
    )
    assert "pip install 'vse-scale[bench]'" in refused(monkeypatch, capsys, "loader")
    # Of all stages those that can be measured are.
    chosen, left_out = stages.choose([])
    assert chosen == ["kernels", "step", "shards", "loss"]
    assert all("needs OpenCV" in line for line in left_out)


def test_outside_a_checkout_there_are_no_scripts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stages, "REPOSITORY", tmp_path)
    assert "kernels" not in stages.choose([])[0]
    with pytest.raises(Exception, match="run it from a checkout"):
        stages.choose(["kernels"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["loader"]
    + [pytest.param(s, marks=pytest.mark.soak) for s in ("decode", "eval", "kernels", "shards")],
)
def test_a_rehearsal_of_a_stage(job: Job, stage: str) -> None:
    rows = [row for case in stages.STAGES[stage].measure(job) for row in case]
    check(rows, stage)
    cases = {"kernels": 6, "shards": 2}.get(stage, 1)
    assert len({row.case for row in rows}) == cases
    if stage in ("decode", "loader", "eval"):
        assert all(row.peak_bytes > 100 << 20 for row in rows)


def check(rows: Sequence[Row], stage: str) -> None:
    assert {row.stage for row in rows} == {stage}
    for row in rows:
        assert row.peer in {other.implementation for other in rows if other.case == row.case}
        assert 0 < row.low <= row.median <= row.high
        assert row.times > 0
        assert (row.times == 1.0) or row.implementation != row.peer
        assert row.torch == torch.__version__
    assert any(row.implementation.startswith("vse_scale") for row in rows)


def state(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return "gone"


@pytest.mark.slow
def test_sigterm_ends_implementations_and_leaves_no_folder(photos: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "vse_scale.cli", "bench", "decode", "--repeats", "1000"]
    running = subprocess.Popen([*command, "--data", str(photos)], env=environment)
    process = psutil.Process(running.pid)
    implementations: list[psutil.Process] = []
    while [state(p) for p in implementations].count("stopped") < 2:
        time.sleep(0.1)
        assert running.poll() is None
        implementations = process.children(recursive=True)
    running.terminate()
    assert running.wait(20) == 143
    _, left = psutil.wait_procs(implementations, timeout=10)
    assert {state(p) for p in left} <= {"zombie", "gone"}
    assert not list(tmp_path.glob("vse-bench-*"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["step", pytest.param("train", marks=pytest.mark.soak)])
def test_a_rehearsal_as_a_user_starts_it(stage: str, photos: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "out.csv", tmp_path / "plot.svg"
    arguments = [stage, "--small", "--data", photos, "--out", out, "--plot", plot]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "vse_scale.cli", "bench", *map(str, arguments), "--json"],
        capture_output=True, text=True, timeout=850, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [Row(**row) for row in json.loads(done.stdout)["rows"]]
    check(rows, stage)
    assert all(row.peak_bytes > 100 << 20 for row in rows)
    if stage == "train":
        ours = [row for row in rows if row.implementation.startswith("vse_scale")][-1]
        assert "five captions" in ours.implementation
        assert ours.shares.startswith("data ")
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [field.name for field in fields(Row)]
    assert [line["implementation"] for line in lines] == [row.implementation for row in rows]
    assert plot.stat().st_size > 1000
