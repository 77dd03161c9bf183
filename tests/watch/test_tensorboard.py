"""TensorBoard's own reader finds what the records hold, and nothing twice after a resume."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from records import EVALUATION, RECORD
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vse_scale.config import Config
from vse_scale.run.folder import RunFolder
from vse_scale.training.watch.tensorboard import TensorBoard


def opened(small_run: Path, folder: Path, next_step: int) -> TensorBoard:
    config = Config.load(small_run)
    return TensorBoard(config, RunFolder(folder), next_step=next_step, total_steps=9)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_records_become_scalars(small_run: Path, tmp_path: Path) -> None:
    board = opened(small_run, tmp_path, next_step=0)
    for step in range(3):
        board.step(replace(RECORD, step=step, loss=step / 2))
    board.evaluation(replace(EVALUATION, step=2))
    board.close()
    assert scalars(tmp_path, "loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert scalars(tmp_path, "learning_rate/text")[0][1] == pytest.approx(1e-4)
    assert scalars(tmp_path, "seconds/backward")[0] == (0, 0.5)
    assert scalars(tmp_path, "recall/t2i_r5") == [(2, 50.0)]
    assert scalars(tmp_path, "rsum") == [(2, 300.0)]


def test_the_host_is_not_named(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs travel; tensorflow/tensorboard#849 shows a name of such a file, with its host.

    And two of one second are two files, as they were not in lanpa/tensorboardX#776.
    """
    monkeypatch.setattr(socket, "gethostname", lambda: "ada-desk")
    board = opened(small_run, tmp_path, next_step=0)
    board.step(RECORD)
    board.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"ada-desk" not in bytes(file) + file.read_bytes()
    assert scalars(tmp_path, "loss")


def test_a_resumed_run_hides_what_it_trains_again(small_run: Path, tmp_path: Path) -> None:
    killed = opened(small_run, tmp_path, next_step=0)
    for step in range(5):
        killed.step(replace(RECORD, step=step, loss=float(step)))
    killed.checkpoint(tmp_path, 1.0)
    resumed = opened(small_run, tmp_path, next_step=3)
    resumed.step(replace(RECORD, step=3, loss=-1.0))
    resumed.close()
    assert scalars(tmp_path, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, -1.0)]
