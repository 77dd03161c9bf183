"""Killed, stopped, starved of disk: a run goes on where it was, to the bit."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from groups import Group
from launching import assert_same_run, random_run
from warm import training, vse_scale

from vse_scale.run.journal import read_journal
from vse_scale.training.checkpoint import TENSORS, finished_checkpoints
from vse_scale.training.contract import GRACE_SECONDS


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration that draws at random wherever it can, and a run of it, never stopped.

    All ranks write its checkpoints; those that one gathers meet their faults in test_chaos.py, and
    so does the hinge with rates that drop.
    """
    folder = tmp_path_factory.mktemp("faults")
    config = folder / "faults.yaml"
    falls = "schedule: cosine, schedule_epochs: 2, layer_decay: 0.8, average: 0.9"
    objective = "objective: {kind: infonce, matryoshka: [8, 24]}"
    config.write_text(random_run(scenes, objective, every=8, falls=falls, gather_gb=0))
    result = vse_scale("train", "--ranks", "2", "--config", config, f"run.dir={folder / 'run'}")
    assert result.returncode == 0, result.stderr[-4000:]
    return config, folder / "run"


@dataclass(frozen=True)
class Run:
    """A supervised run on two ranks, in the background."""

    group: Group
    folder: Path

    def ranks(self) -> list[psutil.Process]:
        launchers = psutil.Process(self.group.pid).children()
        return [rank for launcher in launchers for rank in launcher.children()]


@contextmanager
def started(config: Path, folder: Path, *overrides: str) -> Iterator[Run]:
    arguments = ("--max-restarts", "99", "--config", config, f"run.dir={folder}", *overrides)
    with training(2, folder.with_suffix(".log"), *arguments) as group:
        yield Run(group, folder)


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


def kill_at_random(run: Run, rounds: int, draws: random.Random) -> list[str]:
    """Kill a random rank ``rounds`` times, every other time during a checkpoint.

    The others come soon after another checkpoint, but for the first: on a slow machine the run
    would not come as far as that, and never be resumed.
    """
    moments, folder = [], run.folder / "checkpoints"
    for number in range(1, rounds + 1):
        if not run.group.wait_for_words("steps an epoch", times=number):
            break
        if number % 2:
            moments.append("step")
            before = finished_checkpoints(folder)[:1]
            if number > 1 and not run.group.wait_for(
                lambda before=before: finished_checkpoints(folder)[:1] != before, 600
            ):
                break
            time.sleep(draws.uniform(0.0, 1.5))
        else:
            moments.append("checkpoint")
            partial = folder.glob
            if not run.group.wait_for(lambda partial=partial: any(partial(".*.partial")), 120):
                break
        ranks = run.ranks()
        if not ranks:
            break
        draws.choice(ranks).send_signal(signal.SIGKILL)
        if not run.group.wait_for_words("starting it again", times=number):
            break
    return moments


def check_kills(whole: tuple[Path, Path], folder: Path, rounds: int) -> None:
    """Runs, one after the other, until ``rounds`` kills have happened; each ends as it should."""
    config, uninterrupted = whole
    draws = random.Random(rounds)
    killed = 0
    for number in itertools.count():
        with started(config, folder / f"run-{number}") as run:
            kill_at_random(run, rounds - killed, draws)
            assert run.group.wait(600) == 0, run.group.said()[-4000:]
        restarts = run.group.said().count("starting it again")
        assert (
            run.group.said().count("resumed from") + run.group.said().count("steps 0 to")
            >= restarts + 1
        )
        assert "resumed from" in run.group.said() or restarts < 3
        assert_same_run(run.folder, uninterrupted)
        killed += restarts
        if killed >= rounds:
            return


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten starts; a shared machine takes twice as long for each
def test_six_kills_leave_no_trace(whole: tuple[Path, Path], tmp_path: Path) -> None:
    check_kills(whole, tmp_path, 6)


@pytest.mark.soak
def test_fifty_kills_leave_no_trace(whole: tuple[Path, Path], tmp_path: Path) -> None:
    check_kills(whole, tmp_path, 50)


@pytest.mark.slow
def test_a_rank_that_falls_silent_is_found_and_replaced(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    config, uninterrupted = whole
    limit = 6
    with started(config, tmp_path / "run", f"engine.timeout_seconds={limit}") as run:
        assert run.group.wait_for_words("checkpoint ")
        run.ranks()[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert run.group.wait_for_words("starting it again")
        # The collective's limit, the others' grace, and a machine that has more to do.
        assert time.monotonic() - began < limit + GRACE_SECONDS + 90
        assert run.group.wait(600) == 0, run.group.said()[-4000:]
    assert_same_run(run.folder, uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    config, uninterrupted = whole
    arguments = ("train", "--ranks", "2", "--config", config, f"run.dir={tmp_path / 'run'}")
    assert vse_scale(*arguments, "train.max_steps=20").returncode == 0
    damaged = newest(tmp_path / "run") / TENSORS
    size = damaged.stat().st_size
    os.truncate(damaged, random.Random(1).randrange(size))
    result = vse_scale(*arguments)
    assert result.returncode == 0, result.stderr[-4000:]
    assert f"step-00000020: {TENSORS} has " in result.stderr
    assert "trying the one before it" in result.stderr
    assert "step-00000016" in result.stderr
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(
    whole: tuple[Path, Path], small_disk: Path
) -> None:
    config, uninterrupted = whole
    folder = small_disk / "run"
    arguments = ("train", "--ranks", "2", "--config", config, f"run.dir={folder}")
    assert vse_scale(*arguments, "train.max_steps=20").returncode == 0
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    room = newest(folder).joinpath(TENSORS).stat().st_size // 2
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - room))
    result = vse_scale(*arguments)
    assert result.returncode == 2, result.stderr[-4000:]
    (line,) = (line for line in result.stderr.splitlines() if "vse-scale: error: " in line)
    assert "step-00000024: cannot be written" in line
    assert "No space left" in line
    assert "step-00000020 stays" in line
    assert "Traceback" not in result.stderr
    filler.unlink()
    result = vse_scale(*arguments)
    assert result.returncode == 0, result.stderr[-4000:]
    assert_same_run(folder, uninterrupted, same_best=False)


@pytest.mark.slow
def test_a_port_that_is_taken_is_left_for_another(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    from vse_scale.config import Config
    from vse_scale.training import supervisor

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = supervisor.free_port
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(supervisor, "free_port", lambda: next(ports, None) or free())
        overrides = ["train.max_steps=2", "eval.every_epochs=9"]
        config = Config.load(small_run, overrides)
        watched = supervisor.Supervisor(
            config, ["--config", str(small_run), *overrides], ranks=1, max_restarts=1
        )
        assert watched.run() == 0
    assert "starting it again" in caplog.text
    assert len(read_journal(Path(config.run.dir) / "metrics.jsonl")) == 2
