"""How a rank that hangs is told from one that has much to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vse_scale.config import Config
from vse_scale.data import staging
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import OutputError
from vse_scale.run.lock import RunLock
from vse_scale.training import alive, setup, supervisor
from vse_scale.training.alive import Silence, long_work, tell_alive
from vse_scale.training.contract import FAILURES
from vse_scale.training.supervisor import Supervisor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows the last of these seconds."""
    shown = [0.0]
    monkeypatch.setattr(alive.time, "monotonic", lambda: shown[-1])
    return shown


def test_silence_is_counted_from_the_last_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setenv(FAILURES, str(tmp_path))
    tell_alive()
    silence = Silence(tmp_path)  # forgets the start before
    clock.append(0.9)
    assert silence.is_first
    assert silence.seconds() == pytest.approx(0.9), "a rank may be stopped before its first sign"
    tell_alive()
    clock.append(1.8)
    assert silence.seconds() == 0.0
    assert not silence.is_first
    clock.append(2.7)
    assert silence.seconds() == pytest.approx(0.9)
    os.utime(tmp_path / "alive", (5, 5))  # a sign under a clock that was set back
    clock.append(3.6)
    assert silence.seconds() == 0.0
    clock.append(900.0)
    assert silence.seconds() == 1.0, "the watcher itself was stopped"


def test_long_work_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILURES, str(tmp_path))
    monkeypatch.setattr("vse_scale.console.HEARTBEAT_SECONDS", 0.01)
    with long_work("reading"):
        first = (tmp_path / "alive").stat().st_mtime_ns
        deadline = time.monotonic() + 20
        while (tmp_path / "alive").stat().st_mtime_ns == first:
            assert time.monotonic() < deadline


def test_without_a_supervisor_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILURES, raising=False)
    tell_alive()


# As DeepSpeed's launcher of one rank that hangs, after a sign of its life or before it.
HANGS = """
import os, pathlib, subprocess, sys, time
from vse_scale.training.contract import FAILURES
if {told}:
    pathlib.Path(os.environ[FAILURES], "alive").touch()
code = "import time; time.sleep(300)"
sys.exit(subprocess.run([sys.executable, "-c", code, "stand_in"]).returncode != 0)
"""


@pytest.mark.parametrize("told", [True, False])
def test_one_rank_that_hangs_is_killed_and_started_again(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After pytorch/pytorch#99215: the only rank waits for a disk, and nobody for the rank."""
    config = Config.parse(
        {
            "data": {"path": "none"},
            "engine": {"timeout_seconds": 0.5},
            "run": {"dir": str(tmp_path / "run")},
        }
    )
    (tmp_path / "hangs.py").write_text(HANGS.format(told=told))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor, "_RANK", "stand_in")
    monkeypatch.setattr(supervisor, "HEARTBEAT_SECONDS", 0.1)
    # A stand-in that tells has as long as it takes to start.
    monkeypatch.setattr(supervisor, "_START_SECONDS", 120.0 if told else 1.5)
    popen = subprocess.Popen
    monkeypatch.setattr(
        supervisor.subprocess,
        "Popen",
        lambda _, **options: popen([sys.executable, tmp_path / "hangs.py"], **options),
    )
    watched = Supervisor(config, [], ranks=1, max_restarts=1)
    with pytest.raises(supervisor.TrainingError, match="died 2 times without a new checkpoint"):
        watched.run()
    said = caplog.text
    words = "no rank got on with its work for" if told else "no rank began its work within 2 s"
    remedy = "raise engine.timeout_seconds if" if told else "set engine.timeout_seconds above that"
    assert said.count(words) == said.count(remedy) == 2
    assert "starting it again" in said


def test_long_work_has_told_before_it_is_taken_for_a_hang(tmp_path: Path) -> None:
    short = {"data": {"path": "none"}, "run": {"dir": "r"}, "engine": {"timeout_seconds": 1}}
    assert Supervisor(Config.parse(short), [], ranks=1, max_restarts=0)._patience > 2 * 7.9


def test_a_rank_that_waits_for_a_slow_storage_is_alive(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each block that has come, and after each dataset that was opened."""
    monkeypatch.setattr(staging, "_BLOCK", 500)
    monkeypatch.setenv(FAILURES, str(tmp_path))
    config = Config.parse(
        {
            "data": {"path": scenes.as_uri(), "cache_dir": str(tmp_path / "cache")},
            "run": {"dir": str(tmp_path / "run")},
        }
    )
    signs: list[float] = []
    monkeypatch.setattr(setup, "tell_alive", lambda: signs.append(time.monotonic()))
    dataset, validation, _ = setup.open_data(config, 1)
    opened = len(signs)
    assert isinstance(dataset, ShardDataset)
    assert validation is not None
    indices = sum(path.stat().st_size for path in scenes.glob("*.idx"))
    assert opened > indices / 500
    size = dataset.image_bytes(0).size
    assert len(signs) - opened > size / 500

    local = Config.parse({"data": {"path": str(scenes)}, "run": {"dir": str(tmp_path / "run")}})
    # What the first dataset still fetches ahead tells by the former function.
    of_local: list[float] = []
    monkeypatch.setattr(setup, "tell_alive", lambda: of_local.append(time.monotonic()))
    setup.open_data(local, 1)
    assert len(of_local) == 4


def test_a_folder_that_was_removed_ends_the_run_in_a_line(tmp_path: Path) -> None:
    """After Lightning-AI/pytorch-lightning#21110: it is made again, and what was there is lost."""
    with RunLock(tmp_path / "run") as mine:
        mine.check()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="was removed or moved while the run wrote there"):
            mine.check()
        (tmp_path / "elsewhere").rename(tmp_path / "run")  # the remedy
        mine.check()
