"""Mistakes that a user makes, through the commands: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm import vse_scale

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on standard error of a command that was refused."""
    assert result.returncode == 2, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    return lines[0]


def train(config: Path, *overrides: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return vse_scale("train", "--ranks", str(ranks), "--config", config, *overrides)


def build(captions: Path, images: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "vse-shards", "build", "--source", "jsonl", "--input", captions]
    return subprocess.run(
        [*map(str, command), "--images", str(images), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_no_such_dataset(small_run: Path) -> None:
    said = complaint(train(small_run, "data.path=nowhere/at/all"))
    assert "nowhere/at/all" in said


def test_no_such_split(small_run: Path) -> None:
    said = complaint(train(small_run, "data.split=tarin"))
    assert "tarin" in said
    assert "train" in said.replace("tarin", "")


def test_an_unknown_key_names_the_nearest(small_run: Path) -> None:
    assert "optim.lrate; did you mean optim.lr?" in complaint(train(small_run, "optim.lrate=1"))


def test_a_batch_that_does_not_divide(small_run: Path) -> None:
    said = complaint(train(small_run, "data.global_batch=18", ranks=4))
    assert "18, not divisible by 4 ranks x 2 captions per image; set 16 or 24" in said


def test_a_batch_larger_than_an_epoch(small_run: Path) -> None:
    assert "160 pairs" in complaint(train(small_run, "data.global_batch=512"))


def test_a_manifest_that_does_not_match_its_tars(
    small_run: Path, scenes: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(scenes, damaged)
    tar = damaged / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    said = complaint(train(small_run, f"data.path={damaged}"))
    assert "train-000001.tar" in said
    assert str(tar.stat().st_size) in said.replace(",", "")


def test_a_checkpoint_of_another_dataset(small_run: Path, scenes: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    state = json.dumps({"step": 5, "fingerprint": "0" * 64, "config": {}})
    (checkpoint / "state.json").write_text(state)
    listed = {"bytes": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (checkpoint / "files.json").write_text(json.dumps({"state.json": listed}))
    said = complaint(train(small_run))
    assert "step-00000005: was trained on a dataset with fingerprint 000000000000" in said
    assert (checkpoint / "state.json").read_text() == state


@pytest.mark.slow
def test_the_launcher_passes_the_refusal_on(small_run: Path) -> None:
    result = subprocess.run(
        [
            *(BIN / "deepspeed", "--num_gpus", "2", "--quiet", ROOT / "launch" / "train.py"),
            *("--config", small_run, "optim.lrate=1"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "did you mean optim.lr?" in complaint(result)


def test_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("")
    said = complaint(build(tmp_path / "captions.jsonl", tmp_path, tmp_path / "out"))
    assert "captions.jsonl" in said


def test_no_such_source(tmp_path: Path) -> None:
    said = complaint(build(tmp_path / "nothing.jsonl", tmp_path, tmp_path / "out"))
    assert "nothing.jsonl" in said


def test_missing_images_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    rows = [{"image": f"{name}.jpg", "captions": ["a thing"]} for name in "abcde"]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = complaint(build(tmp_path / "captions.jsonl", tmp_path, tmp_path / "out"))
    assert "5 of 5" in said
    assert all(f"{name}.jpg" in said for name in "abc")
    assert "d.jpg" not in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["eval", "--model", "no/model", "--data", "{scenes}"], "no/model"),
        (["eval", "--model", "no/model", "--data", "no/data"], "no/"),
        (["eval", "--model", ".", "--data", "{scenes}", "--protocol", "coco"], "coco"),
        (["eval", "--model", ".", "--data", "{scenes}", "--json", "no/folder/x.json"], "no/folder"),
        (["report", "--run", "no/run"], "no/run"),
    ],
)
def test_commands_on_finished_runs(scenes: Path, arguments: list[str], named: str) -> None:
    said = complaint(vse_scale(*(word.format(scenes=scenes) for word in arguments)))
    assert named in said
