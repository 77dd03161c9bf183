"""Whole runs through the launcher: what they leave behind, how they stop and go on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commandline import vse_scale as started_anew
from groups import Group
from launching import assert_same_run, random_run
from safetensors.torch import load_file
from warm import training, vse_scale

from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.recorded import RecordedRanks
from vse_scale.run.folder import RunRecords
from vse_scale.run.journal import read_journal


def train(config: Path, folder: Path, *overrides: str, ranks: int = 2) -> str:
    result = vse_scale(
        "train", "--ranks", str(ranks), "--config", config, f"run.dir={folder}", *overrides
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stderr


@contextmanager
def started_until(config: Path, folder: Path, said: str) -> Iterator[Group]:
    """Start a run on two ranks and give it once it has logged ``said``."""
    log = folder.with_suffix(".log")
    with training(2, log, "--config", config, f"run.dir={folder}") as run:
        assert run.wait_for_words(said), run.said()[-4000:]
        yield run


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration with dropout, and the folder of a run of it that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "small.yaml"
    config.write_text(random_run(scenes))
    # By the command itself, which the forks of the other tests must equal to the bit.
    result = started_anew(
        "train", "--ranks", "2", "--config", config, f"run.dir={folder / 'run'}", timeout=600
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return config, folder / "run"


@pytest.mark.slow
def test_a_run_leaves_what_is_promised(whole: tuple[Path, Path]) -> None:
    _, folder = whole
    steps = read_journal(folder / "metrics.jsonl")
    assert [r["step"] for r in steps] == list(range(50))  # 400 pairs / 16, two epochs
    assert {r["objective"] for r in steps[:25]} == {"all"}
    assert {r["objective"] for r in steps[25:]} == {"hardest"}
    for record in steps:
        phases = sum(v for k, v in record["seconds"].items() if k != "step")
        assert phases == pytest.approx(record["seconds"]["step"])
    evaluations = read_journal(folder / "evaluations.jsonl")
    assert [e["epoch"] for e in evaluations] == [0, 1]
    results = json.loads((folder / "results.json").read_text())
    assert results["rsum"] == max(e["rsum"] for e in evaluations)
    assert results["steps"] == 50
    ranks = RecordedRanks.of_run(RunRecords.load(folder))
    assert ranks is not None
    assert ranks.ranks.recalls().rsum == pytest.approx(results["rsum"])
    model = VSEModel.from_pretrained(folder / "model")
    ids, lengths = CaptionTokenizer.load(folder / "model").encode(["a big red ring"])
    embedded = model.encode_captions(*map(torch.as_tensor, (ids, lengths)))
    assert embedded.shape == (1, 24)


@pytest.mark.slow
def test_stopped_after_an_epoch_and_started_again_is_bit_equal(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    config, uninterrupted = whole
    train(config, tmp_path / "run", "train.max_steps=25")
    said = train(config, tmp_path / "run")
    assert "resumed from" in said
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_in_mid_epoch_and_started_again_is_bit_equal(
    whole: tuple[Path, Path], tmp_path: Path, number: int
) -> None:
    config, uninterrupted = whole
    folder = tmp_path / "run"
    with started_until(config, folder, "checkpoint") as run:
        run.send(number)
        assert run.wait(600) == 75, run.said()
        assert "stopped after step" in run.said()
    stopped = len(read_journal(folder / "metrics.jsonl"))
    assert 0 < stopped < 50
    train(config, folder)
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_the_run_is_bit_equal(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    import psutil

    config, uninterrupted = whole
    folder = tmp_path / "run"
    with started_until(config, folder, "checkpoint") as run:
        (launcher,) = psutil.Process(run.pid).children()
        launcher.children()[1].kill()
        assert run.wait(600) == 0, run.said()[-4000:]
        assert "starting it again" in run.said()
        assert "resumed from" in run.said()
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
def test_a_finished_run_started_again_trains_nothing(whole: tuple[Path, Path]) -> None:
    config, folder = whole
    before = (folder / "metrics.jsonl").read_text()
    results = json.loads((folder / "results.json").read_text())
    train(config, folder)
    assert (folder / "metrics.jsonl").read_text() == before
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.slow
def test_a_run_starts_from_a_model_and_ends_when_nothing_gets_better(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    config, other = whole
    folder = tmp_path / "run"
    options = (
        f"model.init_from={other}",
        "optim.lr=1e-12",
        "eval.every_steps=5",
        "eval.patience=2",
    )
    train(config, folder, *options)
    evaluations = read_journal(folder / "evaluations.jsonl")
    assert [record["step"] for record in evaluations] == [4, 9, 14]
    assert len({record["rsum"] for record in evaluations}) == 1
    assert json.loads((folder / "results.json").read_text())["steps"] == 15
    started, ended = (load_file(run / "model" / "model.safetensors") for run in (other, folder))
    for name, value in started.items():
        torch.testing.assert_close(ended[name], value, rtol=0, atol=1e-9)
    train(config, folder, *options)
    assert len(read_journal(folder / "metrics.jsonl")) == 15
