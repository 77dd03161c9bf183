"""Each part of a run lost or cut short, and the same command again; other settings, more data.

After huggingface/transformers#48319 (parts of a run's folder moved or deleted) and
huggingface/transformers#35782 (a checkpoint that is not whole).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets_made import drawn_scenes, vse_shards
from launching import assert_same_bits, journal, random_run
from ranks import run_ranks
from safetensors.torch import load_file
from warm import WarmGroup

from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.run.journal import read_journal
from vse_scale.training.checkpoint import TENSORS

STARTS = Path(__file__).with_name("starts_of_runs.py")
LAST = 20  # steps, of which 10 are an epoch
HALF = 12


@dataclass(frozen=True)
class Case:
    """A part that is lost, and what is said and left then.

    Attributes:
        part: below the run's folder; "*" matches one name.
        said: by the finished run that is started again; "" where nothing need be said.
        lost: "metrics", "evaluations" or "best": what nothing can bring back; "spare": it is left,
            as tokenizer.json has all of it.
    """

    part: str
    said: str = ""
    lost: str = ""


CASES = [
    Case("config.yaml"), Case("system.json"), Case("results.json"), Case("done"),
    Case("tensorboard"),
    Case("metrics.jsonl", "metrics.jsonl has", lost="metrics"),
    Case("evaluations.jsonl", lost="evaluations"),
    Case("tokenizer"), Case("tokenizer/tokenizer.json"),
    Case("tokenizer/tokenizer_config.json", lost="spare"),
    Case("tokenizer/vocab.txt", lost="spare"),
    Case("model", "model is not there whole", lost="best"),
    Case("model/model.safetensors", "model is not there whole", lost="best"),
    Case("model/config.json", "model is not there whole", lost="best"),
    Case("checkpoints/step-newest", ""),
    Case("checkpoints/step-newest/state.json", "trying the one before it"),
    Case("checkpoints/step-newest/files.json", "trying the one before it"),
    Case(f"checkpoints/step-newest/{TENSORS}", "trying the one before it"),
]  # fmt: skip


def lose(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def start(config: Path, folder: Path, starts: list[list[str]]) -> list[dict[str, Any]]:
    """Start runs one after the other on one rank; return the exit code and words of each."""
    described = folder / "starts.json"
    described.write_text(json.dumps(starts))
    (said,) = run_ranks(1, STARTS, config, described, timeout=600, start=WarmGroup)
    return [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A configuration, and a run of it that is over, one that is half over, and one begun on less
    data."""
    folder = tmp_path_factory.mktemp("parts")
    data = drawn_scenes(folder, images=40, seed=0, shard_samples=16)
    config = folder / "parts.yaml"
    config.write_text(
        random_run(
            data,
            "telemetry: {prometheus_port: null}",
            every=4,
            falls="drop_epochs: [1], drop_factor: 3.0e+2",  # it rises: the second epoch is ruinous
        )
    )
    made = {"whole": folder / "whole", "half": folder / "half"}
    found = start(
        config, folder,
        [[f"run.dir={made['whole']}"], [f"run.dir={made['half']}", f"train.max_steps={HALF}"]],
    )  # fmt: skip
    assert [one["code"] for one in found] == [0, 0], found
    # The best is the first epoch's: its weights are in no checkpoint of the finished run.
    rsums = [rsum for _, rsum in journal(made["whole"], "evaluations.jsonl", "rsum")]
    assert rsums[0] > rsums[1]
    return config, made


def damaged(runs: dict[str, Path], folder: Path) -> list[tuple[Case, str, Path]]:
    """Copies of both runs, each with one part lost or, where it is a file, cut short."""
    made: list[tuple[Case, str, Path]] = []
    changes: tuple[Callable[[Path], None], ...] = (lose, tear)
    for case in CASES:
        for state in ("whole", "half"):
            for change in changes:
                copy = folder / f"{len(made)}"
                shutil.copytree(runs[state], copy)
                newest = max((copy / "checkpoints").iterdir()).name
                path = copy / case.part.replace("step-newest", newest)
                # The half run has the same parts: each changed in one of the two ways.
                whole_folder = path.is_dir()
                twice = state == "half" and (change is tear) == whole_folder
                if not path.exists() or twice or (change is tear and whole_folder):
                    shutil.rmtree(copy)
                    continue
                change(path)
                made.append((case, state, copy))
    return made


@pytest.mark.slow
def test_each_part_that_is_lost_or_torn_is_rebuilt(
    runs: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    config, originals = runs
    cases = damaged(originals, tmp_path)
    assert len(cases) > 40
    assert {case.part for case, _, _ in cases} == {case.part for case in CASES}
    found = start(config, tmp_path, [[f"run.dir={folder}"] for _, _, folder in cases])
    whole = originals["whole"]
    (*_, end_of_half) = journal(originals["half"], "evaluations.jsonl", "rsum")
    for (case, state, folder), result in zip(cases, found, strict=True):
        told = f"{case.part} of the {state} run, in {folder.name}: {result['said']}"
        assert result["code"] == 0, told
        if state == "whole":
            assert case.said in result["said"], told
        last = f"checkpoints/step-{LAST:08d}/{TENSORS}"
        assert_same_bits(load_file(folder / last), load_file(whole / last))
        losses, expected = (journal(run, "metrics.jsonl", "loss") for run in (folder, whole))
        if case.lost == "metrics":
            assert f"metrics.jsonl has {len(losses)} of {LAST} steps" in result["said"], told
            assert set(losses) <= set(expected), told
        else:
            assert losses == expected, told
        rsums, expected = (journal(run, "evaluations.jsonl", "rsum") for run in (folder, whole))
        if case.lost == "evaluations":
            assert set(rsums) <= {*expected, end_of_half}, told
        else:
            once = dict.fromkeys(rsums) if case.lost == "best" else rsums  # it was validated again
            assert [one for one in once if one != end_of_half] == expected, told
        tokenizers = [CaptionTokenizer.load(run / "tokenizer") for run in (folder, whole)]
        assert tokenizers[0].digest() == tokenizers[1].digest(), told
        for path in (whole / "tokenizer").iterdir():
            if case.lost != "spare" or path.name not in case.part:
                assert (folder / "tokenizer" / path.name).read_bytes() == path.read_bytes(), told
        assert json.loads((folder / "system.json").read_text()), told
        names = {path.name for path in whole.iterdir()}
        assert {path.name for path in folder.iterdir()} >= names, told
        assert (folder / "config.yaml").read_text().replace(str(folder), str(whole)) == (
            (whole / "config.yaml").read_text()
        ), told
        if case.lost != "best":
            weights = "model/model.safetensors"
            assert_same_bits(load_file(folder / weights), load_file(whole / weights))
            results = [json.loads((run / "results.json").read_text()) for run in (folder, whole)]
            assert results[0]["rsum"] == results[1]["rsum"], told
        assert {p.name for p in (folder / "model").iterdir()} == {
            p.name for p in (whole / "model").iterdir()
        }, told


@pytest.mark.slow
def test_other_settings_and_more_data(runs: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """After allenai/allennlp#4688 and huggingface/transformers#26413: a run goes on with more."""
    config, originals = runs
    data = tmp_path / "grown"
    shutil.copytree(Path(config).parent / "shards", data)
    vse_shards("demo", "--images", 20, "--seed", 7, "--out", tmp_path / "more")
    more = tmp_path / "more"
    arguments = ("--source", "jsonl", "--input", more / "captions.jsonl", "--images", more)
    vse_shards("append", data, *arguments, "--prefix-ids")
    copies = {name: tmp_path / name for name in ("same", "lr", "data", "refused", "other")}
    for copy in copies.values():
        shutil.copytree(originals["half"], copy)
    grown = f"data.path={data}"
    starts = {
        "same": [],
        "lr": ["optim.lr=1e-4", "train.epochs=3", "run.resume_with=[optim.lr,train.epochs]"],
        "data": [grown, "run.resume_with=[data.path]"],
        "refused": [grown],
        "other": ["optim.lr=1e-4", "data.word_drop=0.1", "run.resume_with=[optim.lr]"],
    }
    found = dict(
        zip(
            starts,
            start(config, tmp_path, [[f"run.dir={copies[n]}", *s] for n, s in starts.items()]),
            strict=True,
        )
    )
    assert {name: one["code"] for name, one in found.items()} == {
        "same": 0, "lr": 0, "data": 0, "refused": 2, "other": 2,
    }, found  # fmt: skip
    assert f"--resume-with {grown}" in found["refused"]["said"]
    assert "data.word_drop was 0.3, is 0.1" in found["other"]["said"]
    last = f"checkpoints/step-{LAST:08d}/{TENSORS}"
    assert_same_bits(load_file(copies["same"] / last), load_file(originals["whole"] / last))
    changes = json.loads((copies["lr"] / "changes.jsonl").read_text())
    assert changes["step"] == HALF
    assert changes["changes"] == {"optim.lr": [1e-3, 1e-4], "train.epochs": [2, 3]}
    assert [r["step"] for r in read_journal(copies["lr"] / "metrics.jsonl")] == list(range(30))
    assert (
        "the dataset has grown: 15 steps an epoch, were 10; epoch 2 begins anew"
        in (found["data"]["said"])
    )
    changes = json.loads((copies["data"] / "changes.jsonl").read_text())
    assert changes["step"] == HALF
    assert changes["changes"]["data.path"][1] == str(data)
    records = read_journal(copies["data"] / "metrics.jsonl")
    # Twelve steps of old, then the whole of epoch 2.
    assert [record["step"] for record in records] == list(range(HALF + 15))
    assert [record["epoch"] for record in records] == [0] * 10 + [1] * 17
    assert records[-1]["epoch_fraction"] == 2.0
    # From there on the same command, without a word of it, is the run's.
    (again,) = start(config, tmp_path, [[f"run.dir={copies['data']}", grown]])
    assert again["code"] == 0, again
    assert [r["step"] for r in read_journal(copies["data"] / "metrics.jsonl")] == list(range(27))
