"""A run that goes on with parts of its folder lost, torn, or validated on another split.

After huggingface/transformers#48319 (parts of a run's folder moved or deleted),
huggingface/transformers#35782 (a checkpoint that is not whole) and huggingface/setfit#562 (a folder
that cannot be written).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from vse_scale.config import Config
from vse_scale.errors import CheckpointError, OutputError, TrainingError
from vse_scale.files import unwritable, whole_folder
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.run.folder import RunFolder
from vse_scale.run.journal import Journal, read_journal
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training import resumed, setup
from vse_scale.training.checkpoint import finished_checkpoints
from vse_scale.training.failures import explained
from vse_scale.training.resumed import (
    Resumed,
    best_that_counts,
    check_vocabulary,
    lacks_validation,
    model_is_whole,
    results_of,
    resume,
)
from vse_scale.training.run_state import RunState
from vse_scale.training.schedule import Schedule
from vse_scale.training.trainer import Trainer
from vse_scale.world.processes import ALONE, World

STATE = RunState(
    step=48,
    fingerprint="f",
    config={"eval": {"split": None}},
    best_rsum=71.0,
    best_step=24,
    stale=1,
)


def folder(path: Path, *, model: bool = True, validated: tuple[int, ...] = ()) -> RunFolder:
    run = RunFolder(path)
    if model:
        run.model_folder.mkdir()
    records = [EvaluationRecord(step=step, split="val", rsum=7.0) for step in validated]
    run.evaluations_file.write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))
    return run


@pytest.fixture(autouse=True)
def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder will do; `test_parts_of_a_run` has real ones."""
    monkeypatch.setattr(resumed, "model_is_whole", lambda run: run.model_folder.is_dir())


def test_a_best_model_that_is_there_counts(tmp_path: Path) -> None:
    assert best_that_counts(STATE, "val", folder(tmp_path)) == STATE


@pytest.mark.parametrize(
    ("split", "model", "words"),
    [
        ("train", True, "eval.split was val, is train: the best model so far (RSUM 71.0)"),
        ("val", False, "is not there whole, and the weights of its step 24 are in no checkpoint"),
    ],
)
def test_one_that_does_not_is_forgotten_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str, model: bool, words: str
) -> None:
    found = best_that_counts(STATE, split, folder(tmp_path, model=model))
    assert found == replace(STATE, best_rsum=None, best_step=None, stale=0)
    assert words in caplog.text
    assert "counts no more, and is replaced by the next" in caplog.text


def test_a_model_whose_weights_are_in_the_checkpoint_is_not_lost(tmp_path: Path) -> None:
    state = replace(STATE, best_step=48)
    assert best_that_counts(state, "val", folder(tmp_path, model=False)) == state


def test_a_model_that_lost_a_part_of_it_is_not_whole(small_model: VSEModel, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not model_is_whole(run)
    tokenizer = CaptionTokenizer.train(["a dog", "two cats"] * 9, 50)
    small_model.save_pretrained(run.model_folder, tokenizer=tokenizer)
    assert model_is_whole(run)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        file = run.model_folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert not model_is_whole(run), name
        file.unlink()
        assert not model_is_whole(run), name
        file.write_bytes(whole)
    assert model_is_whole(run)


def test_words_that_were_exchanged_in_a_tokenizer_are_noticed(tmp_path: Path) -> None:
    """It has as many of them, so that the weights fit; after huggingface/transformers#1078."""
    folder = RunFolder(tmp_path).tokenizer_folder
    tokenizer = CaptionTokenizer.train(["a dog", "two cats"] * 9, 50)
    tokenizer.save(folder)
    state = replace(STATE, vocabulary=tokenizer.digest())
    file = folder / "tokenizer.json"
    before = file.read_text()
    described = json.loads(before)
    words = described["model"]["vocab"]
    words["dog"], words["two"] = words["two"], words["dog"]
    file.write_text(json.dumps(described))
    other = CaptionTokenizer.load(folder)
    assert other.vocab_size == tokenizer.vocab_size
    with pytest.raises(CheckpointError, match="was trained with another vocabulary; put the token"):
        check_vocabulary(state, other.digest(), tmp_path / "step-1", RunFolder(tmp_path))
    file.write_text(before)  # the remedy
    found = CaptionTokenizer.load(folder).digest()
    check_vocabulary(state, found, tmp_path / "step-1", RunFolder(tmp_path))


def test_a_validation_that_was_stopped_is_made_up_for(tmp_path: Path) -> None:
    run = folder(tmp_path, validated=(23,))
    assert lacks_validation(STATE, "val", run)
    assert not lacks_validation(replace(STATE, step=24, best_step=12), "val", run)
    assert lacks_validation(replace(STATE, step=24, best_step=12), "test", run)
    assert not lacks_validation(replace(STATE, best_step=48), "val", run)


def test_results_without_records_are_those_of_the_state(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = results_of(STATE, 16, [], [], "val").to_json()
    assert found == {
        "step": 23, "epoch": 0, "split": "val", "rsum": 71.0, "steps": 48, "pairs": 768,
    }  # fmt: skip
    assert "metrics.jsonl has 0 of 48 steps" in caplog.text
    steps = [StepRecord(step=n, loss=float(n), seconds={"step": 0.5}) for n in range(48)]
    best = EvaluationRecord(step=23, split="val", rsum=71.0, seconds=3.0)
    whole = results_of(STATE, 16, steps, [best], "val")
    assert (whole.final_loss, whole.train_seconds, whole.best) == (47.0, 24.0, best)


def test_a_damaged_line_is_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 0, "loss": 1.0}\n', '{"step": 1, "lo\n', '{"step": 2}\n', "\0\0\n"]
    path.write_text("".join(lines))
    with path.open("ab") as file:
        file.write(b'{"step": 3, "loss": 1.0}\n{"step": 4, "l')
    journal = Journal(path, next_step=9, kind=StepRecord.from_json)
    journal.write(StepRecord(step=4, loss=2.0))
    journal.close()
    assert [record["step"] for record in read_journal(path)] == [0, 3, 4]
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == "".join(lines[1:])
    assert "3 damaged lines, the first line 2, moved to metrics.jsonl.damaged" in caplog.text


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("step-00000008", "step-00000016", "step-old", "step-"):
        (tmp_path / name).mkdir()
    names = [path.name for path in finished_checkpoints(tmp_path)]
    assert names == ["step-00000016", "step-00000008"]


@pytest.mark.parametrize("exchange", [True, False])
def test_there_is_a_model_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    from vse_scale import files

    if not exchange:  # as on a network file system
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    path, ended, missing = tmp_path / "model", threading.Event(), []

    def watch() -> None:
        while not ended.is_set():
            if not (path / "weights").exists():
                missing.append(1)

    for number in range(2):
        with whole_folder(path) as partial:
            (partial / "weights").write_text(str(number))
    thread = threading.Thread(target=watch)
    if exchange:
        thread.start()
    for number in range(100):
        with whole_folder(path) as partial:
            (partial / "weights").write_text(str(number))
    ended.set()
    if exchange:
        thread.join()
    assert missing == []
    assert (path / "weights").read_text() == "99"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (28, "No space left on device", "make room there"),
        (13, "Permission denied", "give another, or the right to write there"),
        (1, "Operation not permitted", "give another, or the right to write there"),
        (30, "Read-only file system", "give another, or the right to write there"),
        (20, "Not a directory", "give a folder"),
    ],
)
def test_what_cannot_be_written_is_said_with_its_remedy(
    number: int, reason: str, remedy: str
) -> None:
    said = str(unwritable("run.dir is x", OSError(number, os.strerror(number))))
    assert said.startswith(f"run.dir is x: cannot be written ({reason}); {remedy}")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = {"path": "none", "global_batch": 128, "mode": "images", "captions_per_image": 2}
    return Config.parse({"data": data, "run": {"dir": str(tmp_path / "run")}})


def test_a_disk_that_is_full_while_the_model_is_written_is_one_line(
    config: Config, tmp_path: Path
) -> None:
    for error in (
        OSError(28, "No space left on device", str(tmp_path / "run" / "model" / "x")),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ):
        found = explained(error, config, 1)
        assert isinstance(found, OutputError)
        assert "cannot be written (No space left on device); make room there, and the" in str(found)
    other = explained(PermissionError(13, "Permission denied", "/data/x"), config, 1)
    assert str(other).startswith("/data/x: cannot be used (Permission denied)")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                     "allocate memory: you tried to allocate 2304000000 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.34 GiB. GPU 0 has"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_memory_that_is_all_is_one_line_that_says_what_to_set(
    error: Exception, config: Config
) -> None:
    """After metatensor/metatrain#748: the allocator's message alone, which says no remedy."""
    found = explained(error, config, 2)
    assert isinstance(found, TrainingError)
    assert str(found).startswith("out of memory (")
    assert "engine.micro_batches=4 (is 1)" in str(found)
    # The remedies can be set.
    Config.parse(
        {**config.model_dump(mode="json"),
         "engine": {"micro_batches": 4, "activation_checkpointing": True}}
    ).check_layout(2)  # fmt: skip


def test_other_exceptions_are_not_the_users(config: Config) -> None:
    assert explained(ValueError("no"), config, 1) is None
    assert explained(OSError(5, "Input/output error"), config, 1) is None


def test_memory_that_is_all_is_told_to_the_supervisor_with_its_parts(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After metatensor/metatrain#748: the line that the supervisor says has what takes how much."""
    from vse_scale.commands import train as command
    from vse_scale.training import supervisor
    from vse_scale.training.contract import FAILURES
    from vse_scale.training.failures import refuse

    def launch(watched: supervisor.Supervisor) -> int:
        monkeypatch.setenv(FAILURES, watched._environment[FAILURES])
        error = explained(MemoryError("Tried to allocate 2.34 GiB"), config, 1)
        assert isinstance(error, TrainingError)
        assert refuse(error), "the rank is silent, so that there is one line"
        return 1  # of another rank, which left first

    monkeypatch.setattr(supervisor.Supervisor, "_launch", launch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(TrainingError) as caught:
        command._supervised(config, [], 1, 3)
    said = str(caught.value)
    assert said.startswith("out of memory (tried to allocate 2.34 GiB); a rank takes about ")
    for part in ("activations", "weights", "moments", "gradients", "batches"):
        assert f"{part} " in said
    assert "set engine.micro_batches=4 (is 1)" in said
    assert "\n" not in said


def test_a_count_of_memory_that_takes_long_is_left_out(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images of 3,000 px it took more than ten minutes, and the line waited for it."""
    from vse_scale.commands import train as command
    from vse_scale.planning import memory

    class Collected:
        def __del__(self) -> None:
            time.sleep(0.2)  # the first signal comes here, where no exception gets out

    def count(*_: Any, **__: Any) -> str:
        Collected()
        while True:
            time.sleep(0.01)

    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    monkeypatch.setattr(memory, "memory_line", count)
    monkeypatch.setattr(command, "_COUNT_SECONDS", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    assert command._parts(config, 1) is None
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert not printed


def grown(
    tmp_path: Path, step: int, world: World = ALONE, *, best: int | None = 10, shards: int = 2
) -> tuple[Config, Resumed, Any]:
    """A run of 10 steps an epoch that goes on from ``step`` with 20; the split had two shards."""
    config = Config.parse(
        {"data": {"path": "d"}, "eval": {"patience": 1},
         "run": {"dir": str(tmp_path), "resume_with": ["data.path"]}}
    )  # fmt: skip
    then = replace(
        STATE, step=step, fingerprint="then", config=config.recorded(), steps_per_epoch=10,
        best_step=best, best_rsum=None if best is None else 71.0, stale=0,
    )  # fmt: skip
    fresh = replace(then, step=0, fingerprint="now", steps_per_epoch=20)
    dataset: Any = SimpleNamespace(
        fingerprint="now", fingerprints=("now",), grew_from=lambda found, parts: found == "then"
    )
    validation: Any = SimpleNamespace(
        split="val", fingerprint="now", former={"then": 2}, shard_sizes=[9] * shards
    )
    found = resume((tmp_path / "step", then), fresh, config, dataset, validation, world)
    return config, found, validation


@pytest.mark.parametrize(
    ("step", "best", "shards", "validated"),
    [
        (15, 10, 2, []),  # in the midst of an epoch, where none is due
        (5, None, 2, []),
        (20, 10, 2, [1]),  # at its end, and the run was stopped before
        (15, 10, 3, [1]),  # the best model counts no more
    ],
)
def test_a_dataset_that_grew_in_an_epoch_makes_no_validation_due(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    best: int | None,
    shards: int,
    validated: list[int],
) -> None:
    """One before the new rows are trained on would be worse, and end a run of little patience."""
    run = folder(tmp_path, validated=(9,))
    config, resumed_run, validation = grown(tmp_path, step, best=best, shards=shards)
    trainer = object.__new__(Trainer)
    trainer.config, trainer.world, trainer.folder, trainer.validation = (
        config, ALONE, run, validation,
    )  # fmt: skip
    trainer.state, trainer._resumed = resumed_run.state, resumed_run
    trainer.schedule = Schedule(config, 20, trainer.state.shift)
    assert trainer.schedule.place(step)[1] == 0
    epochs: list[int] = []
    monkeypatch.setattr(trainer, "_evaluate", lambda epoch, _: epochs.append(epoch) or True)
    monkeypatch.setattr(trainer, "_save", lambda: None)
    stop: Any = None
    assert trainer._caught_up(stop)
    assert epochs == validated


def test_that_a_split_has_grown_is_said_by_one_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path)

    class Other(World):
        def from_main(self, value: Any) -> Any:
            return main.state

    _, main, _ = grown(tmp_path, 15, shards=3)
    _, found, _ = grown(tmp_path, 15, Other(rank=1, ranks=2), shards=3)
    assert found.state == main.state
    assert found.best_is_lost
    assert caplog.text.count("split val has grown too") == 1


def test_a_lost_tokenizer_is_that_of_the_best_model_and_never_one_of_other_words(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dataset that has grown another would be made, kept, and then refused at each start."""
    texts = ["a dog"] * 9
    monkeypatch.setattr(setup, "caption_texts", lambda *_: texts)
    run, dataset = RunFolder(Path(config.run.dir)), Any
    first = setup.prepare_tokenizer(config, dataset, run, ALONE)
    first.save(run.model_folder)
    shutil.rmtree(run.tokenizer_folder)
    texts += ["two cats"] * 9
    again = setup.prepare_tokenizer(config, dataset, run, ALONE, first.digest())
    assert again.digest() == first.digest()
    assert CaptionTokenizer.load(run.tokenizer_folder).digest() == first.digest()

    for lost in (run.tokenizer_folder, run.model_folder):
        shutil.rmtree(lost)
    other = setup.prepare_tokenizer(config, dataset, run, ALONE, first.digest())
    assert other.digest() != first.digest()
    assert not run.tokenizer_folder.exists(), "and the one of a backup can be put there"
    assert setup.prepare_tokenizer(config, dataset, run, ALONE).digest() == other.digest()
    assert run.tokenizer_folder.is_dir()
