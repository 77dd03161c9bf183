"""Checkpoints behind the steps: what is written is one step, whole, and an error is the run's.

After pytorch/pytorch#144657 and Lightning-AI/pytorch-lightning#20953 (tensors changed while they
are written), NVIDIA-NeMo/RL#3312 (every checkpoint is the first one's copy), google/orbax#605 (an
error of the thread that nobody hears) and intelligent-machine-learning/dlrover#1378 (the last
checkpoint is lost at the end).
"""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from torch import Tensor
from warm import WarmGroup

from vse_scale.config import Config
from vse_scale.errors import CheckpointError, StorageError
from vse_scale.training import checkpoint
from vse_scale.training.checkpoint import TENSORS, Checkpoints, finished_checkpoints
from vse_scale.training.run_state import RunState
from vse_scale.training.snapshot import Share
from vse_scale.training.state import write_tensors
from vse_scale.training.writer import Writer, Written
from vse_scale.world.processes import ALONE

CONFIG = Config.parse({"data": {"path": "shards"}, "run": {"dir": "out"}})
STATE = RunState(step=0, fingerprint="f" * 64, config=CONFIG.model_dump(mode="json"))


class Steps:
    """An engine whose every step changes all of its state in place."""

    def __init__(self) -> None:
        self.weight, self.moment = torch.zeros(40, 50), torch.zeros(2000)

    def step(self) -> None:
        self.weight += 1
        self.moment += 1

    def shares(self) -> Iterator[tuple[str, Share]]:
        yield "model.weight", Share(self.weight, self.weight.shape)
        yield "exp_avg.weight", Share(self.moment.view(40, 50), self.weight.shape)


class Disk:
    """A disk that writes when it is let, and fails as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.error, self.writing = threading.Event(), None, 0
        self.most = 0
        monkeypatch.setattr(checkpoint, "write_tensors", self.write)

    def write(self, path: Path, tensors: dict[str, Tensor], check: Callable[[], None]) -> str:
        self.writing += 1
        self.most = max(self.most, self.writing)
        while not self.free.wait(0.01):
            check()
        self.writing -= 1
        if self.error is not None:
            raise self.error
        return write_tensors(path, tensors, check)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def told() -> list[Written]:
    return []


@pytest.fixture
def writer(tmp_path: Path, told: list[Written]) -> Writer:
    return Writer(Checkpoints(tmp_path, keep=3), ALONE, 60, told.append)


def at(step: int) -> RunState:
    return dataclasses.replace(STATE, step=step)


def run(writer: Writer, first: int, end: Callable[[], object]) -> None:
    """Begin a checkpoint and end the run as ``end`` does."""
    with writer:
        writer.begin(Steps(), at(first))
        end()


def fail() -> None:
    raise ZeroDivisionError


def interrupt() -> None:
    raise KeyboardInterrupt


def look_until_done(writer: Writer) -> None:
    while True:
        writer.look()


def values(path: Path) -> set[float]:
    return {
        float(value) for tensor in load_file(path / TENSORS).values() for value in tensor.flatten()
    }


def test_what_is_written_is_the_step_that_was_copied(
    writer: Writer, disk: Disk, told: list[Written], tmp_path: Path
) -> None:
    engine = Steps()
    with writer:
        for step in (1, 2, 3):
            engine.step()
            disk.free.clear()
            writer.begin(engine, at(step))
            writer.look()
            # The step goes on while the disk is not done with the first byte.
            assert len(told) == step - 1
            assert [path.name[-1] for path in finished_checkpoints(tmp_path)] == [
                str(number) for number in range(step - 1, 0, -1)
            ]
            engine.weight.fill_(-1)  # torn if any of it is still to be read
            engine.moment.fill_(-1)
            disk.free.set()
            writer.finish()
            engine.weight.fill_(step)
            engine.moment.fill_(step)
    assert [values(written.path) for written in told] == [{1.0}, {2.0}, {3.0}]
    assert all(0 <= one.stall_seconds <= one.write_seconds for one in told[:1])


def test_one_is_written_at_a_time_and_the_wait_for_it_counts(
    writer: Writer, disk: Disk, told: list[Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, wait = Steps(), writer.finish

    def finish() -> None:
        """Let the disk go on only once the second is begun, however slow the machine is."""
        threading.Timer(0.2, disk.free.set).start()
        wait()

    with writer:
        writer.begin(engine, at(1))
        monkeypatch.setattr(writer, "finish", finish)
        writer.begin(engine, at(2))
    assert [one.path.name for one in told] == ["step-00000001", "step-00000002"]
    assert disk.most == 1
    assert told[1].stall_seconds > 0.1


def test_the_last_one_is_waited_for_at_the_end_and_at_an_error(
    writer: Writer, disk: Disk, told: list[Written]
) -> None:
    threading.Timer(0.2, disk.free.set).start()
    with writer:
        writer.begin(Steps(), at(1))
    assert len(told) == 1
    disk.free.clear()
    threading.Timer(0.2, disk.free.set).start()
    with pytest.raises(ZeroDivisionError):
        run(writer, 2, fail)
    assert len(told) == 2


def test_a_second_ctrl_c_leaves_the_one_before_and_nothing_half_written(
    writer: Writer, disk: Disk, tmp_path: Path
) -> None:
    disk.free.set()
    with writer:
        writer.begin(Steps(), at(1))
    disk.free.clear()
    with pytest.raises(KeyboardInterrupt):
        run(writer, 2, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OSError(28, "No space left on device"), CheckpointError, 2),
        (OSError(5, "Input/output error"), StorageError, 75),
        (MemoryError("no room"), MemoryError, None),
    ],
)
@pytest.mark.parametrize("noticed", ["look", "begin", "finish", "end"])
def test_an_error_of_the_thread_is_the_runs(
    writer: Writer,
    disk: Disk,
    tmp_path: Path,
    error: Exception,
    kind: type,
    code: int,
    noticed: str,
) -> None:
    engine = Steps()
    disk.free.set()
    with writer:
        writer.begin(engine, at(1))
    disk.error = error
    ends: dict[str, Callable[[], object]] = {
        "look": lambda: look_until_done(writer),
        "begin": lambda: writer.begin(engine, at(3)),
        "finish": writer.finish,
        "end": lambda: None,
    }
    with pytest.raises(kind) as caught:
        run(writer, 2, ends[noticed])
    if code is not None:
        assert caught.value.exit_code == code
        assert "step-00000002: cannot be written" in str(caught.value)
        assert "step-00000001 stays" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_an_error_of_the_thread_does_not_hide_what_ended_the_run(
    writer: Writer, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.error = OSError(28, "No space left on device")
    disk.free.set()
    with pytest.raises(ZeroDivisionError):
        run(writer, 1, fail)
    assert "step-00000001: cannot be written (No space left on device)" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(0, "7 [1.0, 2.0]", id="slow"),
        pytest.param(errno.ENOSPC, "CheckpointError", id="full"),
    ],
)
def test_a_disk_may_take_longer_than_a_rank_is_waited_for(
    tmp_path: Path, error: int, said: str
) -> None:
    """After mosaicml/llm-foundry#733 and mosaicml/composer#2071: those who wait leave too early."""
    wait, seconds = "8", "18"
    script = Path(__file__).with_name("rank_of_writing.py")
    ranks = run_ranks(2, script, tmp_path / "c", wait, seconds, str(error), start=WarmGroup)
    assert all(one.out.strip().startswith(said) for one in ranks), ranks
