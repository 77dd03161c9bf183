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
from vse_scale.errors import OutputError
from vse_scale.run.lock import RunLock
from vse_scale.training import alive, supervisor
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
    assert silence.seconds() == 0.0, "nobody has said that he is there"
    tell_alive()
    clock.append(1.8)
    assert silence.seconds() == 0.0
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


# As DeepSpeed's launcher of one rank that says once that it is alive, and then hangs.
HANGS = """
import os, pathlib, subprocess, sys, time
from vse_scale.training.contract import FAILURES
pathlib.Path(os.environ[FAILURES], "alive").touch()
code = "import time; time.sleep(300)"
sys.exit(subprocess.run([sys.executable, "-c", code, "stand_in"]).returncode != 0)
"""


def test_one_rank_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After pytorch/pytorch#99215: the only rank waits for a disk, and nobody for the rank."""
    config = Config.parse(
        {
            "data": {"path": "none"},
            "engine": {"timeout_seconds": 0.5},
            "run": {"dir": str(tmp_path / "run")},
        }
    )
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor, "_RANK", "stand_in")
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
    assert said.count("no rank got on with its work for") == 2
    assert "starting it again" in said


def test_a_folder_that_was_removed_ends_the_run_in_a_line(tmp_path: Path) -> None:
    """After Lightning-AI/pytorch-lightning#21110: it is made again, and what was there is lost."""
    with RunLock(tmp_path / "run") as mine:
        mine.check()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="was removed or moved while the run wrote there"):
            mine.check()
        (tmp_path / "elsewhere").rename(tmp_path / "run")  # the remedy
        mine.check()
