"""One owner of a run's folder.

After ChrisCummins/clgen#116 and nipype/pydra#216 (the lock of a process that crashed blocks all
after it) and huggingface/setfit#562 (a folder that cannot be written is found after the start).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vse_scale.errors import OutputError
from vse_scale.run import lock
from vse_scale.run.lock import LOCK, RunLock


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.05)


def written(folder: Path, **other: object) -> Path:
    """Leave a lock as a process of this machine that has ended leaves it, but for ``other``."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with RunLock(folder):
        found = json.loads((folder / "lock").read_text())
    found |= {"token": "theirs", "pid": ended.pid, "user": "ada", "host": "n7", **other}
    (folder / "lock").write_text(json.dumps(found))
    return folder


def test_two_starts_at_once_are_one_run_and_one_line(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as first:
        with pytest.raises(OutputError) as caught, RunLock(tmp_path / "run"):
            pass
        first.check()
    said = str(caught.value)
    assert f"run.dir is {tmp_path / 'run'}, which process {os.getpid()} of " in said
    assert "give another run.dir" in said
    assert list((tmp_path / "run").iterdir()) == []
    with RunLock(tmp_path / "run"):
        pass


def _hold(folder: Path, entered, leave) -> None:
    with RunLock(folder):
        entered.set()
        leave.wait(20)


@pytest.mark.parametrize("waited_for", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, waited_for: bool
) -> None:
    """After FoldingAtHome/containers#30: where nobody waits for it, a killed one is a zombie."""
    caplog.set_level(logging.INFO)
    context = multiprocessing.get_context("fork")
    entered, leave = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(tmp_path, entered, leave))
    owner.start()
    assert entered.wait(20)
    owner.kill()
    if waited_for:
        owner.join()
    else:  # it has ended, and is a zombie
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    with RunLock(tmp_path):
        pass
    owner.join()
    assert f"took over from process {owner.pid} of " in caplog.text


def test_a_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    with RunLock(written(tmp_path, pid=os.getpid(), started=1.0)):
        pass


def test_on_another_machine_only_the_heartbeat_tells(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    with RunLock(written(tmp_path, machine="elsewhere")):
        assert time.monotonic() - began >= 0.5
    assert "waiting up to" in caplog.text
    assert "took over from process" in caplog.text
    assert "of ada on n7, which is gone" in caplog.text

    folder = written(tmp_path / "alive", machine="elsewhere")
    ended = threading.Event()

    def beat() -> None:
        found = json.loads((folder / "lock").read_text())
        while not ended.wait(0.02):
            found["beat"] += 1
            lock.write_text(folder / "lock", json.dumps(found))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(OutputError, match="of ada on n7 trains in"), RunLock(folder):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_lock_that_is_no_lock_is_taken_over(tmp_path: Path) -> None:
    for content in ("", "{", "[1]"):
        (tmp_path / "lock").write_text(content)
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_the_heart_beats_and_a_lost_lock_is_noticed(tmp_path: Path) -> None:
    with RunLock(tmp_path) as mine:
        deadline = time.monotonic() + 20
        while json.loads((tmp_path / "lock").read_text())["beat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        token = ""
        while token != "theirs":  # a beat that was being written replaces it once more
            assert time.monotonic() < deadline
            os.replace(written(tmp_path / "other") / "lock", tmp_path / "lock")
            time.sleep(0.2)
            token = json.loads((tmp_path / "lock").read_text())["token"]
        with pytest.raises(OutputError, match="was taken over by process"):
            mine.check()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "theirs"


def test_a_rank_holds_its_supervisors_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLock(tmp_path) as mine:
        monkeypatch.setenv(LOCK, mine.token)
        with RunLock(tmp_path) as inner:
            inner.check()
        mine.check()
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be written .*; give a folder"):
        RunLock(tmp_path / place).__enter__()
    with RunLock(tmp_path / "folder"):  # the remedy
        pass
