"""A supervisor over stand-ins for ranks: what is tried again, after what time, and who dies.

After deepspeedai/DeepSpeed#1016 and mosaicml/composer#917 (ranks outlive their launcher),
sgl-project/sglang#31361 (a parent that is gone before it is watched), and
Lightning-AI/pytorch-lightning#2035 (Ctrl-C).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import typer
from groups import Group
from ranks import environment_without_launcher

from vse_scale.commands import train as command
from vse_scale.config import Config
from vse_scale.errors import (
    CheckpointError,
    OutputError,
    StorageError,
    TrainingError,
    UserError,
)
from vse_scale.run.lock import RunLock
from vse_scale.training import __main__ as rank
from vse_scale.training import setup, supervisor
from vse_scale.training.contract import FAILURES
from vse_scale.training.failures import Failure, OutOfMemory, note, notes, refuse
from vse_scale.training.setup import load_config
from vse_scale.training.stopping import StopRequest, stop_signals
from vse_scale.training.supervisor import Supervisor
from vse_scale.world.processes import ALONE


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A supervisor whose pauses are noted in place of waited for."""
    config = Config.parse({"data": {"path": "none"}, "run": {"dir": str(tmp_path / "run")}})
    made = Supervisor(config, [], ranks=2, max_restarts=9)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return made


def ending(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch, codes: list[int], *failures: Failure
) -> list[float]:
    """Have starts end with ``codes``, each after its failure; return the pauses between them."""
    left, pauses = iter(codes), []
    noted = iter(failures)

    def launch() -> int:
        for failure in [found] if (found := next(noted, None)) else []:
            path = Path(watched._environment[FAILURES], "1.json")
            path.write_text(json.dumps({"step": failure.step, "words": failure.words}))
        return next(left)

    monkeypatch.setattr(watched, "_launch", launch)
    monkeypatch.setattr(watched, "_pause", lambda _, seconds: pauses.append(seconds))
    return pauses


def test_crashes_at_once_are_tried_again_at_growing_intervals(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = ending(watched, monkeypatch, [1] * 8 + [0])
    assert watched.run() == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_storage_that_stays_away_is_left_to_who_starts_the_command_again(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = ending(watched, monkeypatch, [75] * 10)
    assert watched.run() == 75
    assert len(pauses) == 9


def test_a_disk_that_fails_between_two_starts_is_tried_again(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network file system's error ended the supervisor, and with it the run, as a mistake."""
    found: list[Path | StorageError | None] = [
        StorageError("x: cannot be read (Stale file handle)"),
        None,
        None,
        Path("step-1"),
    ]
    found += [None, None] + [StorageError("x")] * 11

    def newest() -> Path | None:
        now = found.pop(0)
        if isinstance(now, StorageError):
            raise now
        return now

    pauses = ending(watched, monkeypatch, [1, 1, 2])
    monkeypatch.setattr(watched, "_newest_checkpoint", newest)
    # One that cannot be looked for, none, a new one, and a mistake whose folder cannot be read.
    assert watched.run() == 2
    assert pauses == [1, 2, 0]
    assert "Stale file handle" in caplog.text
    assert watched.run() == 75
    assert (len(pauses), found) == (12, [])


def test_a_death_after_a_new_checkpoint_is_no_reason_to_wait(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = ending(watched, monkeypatch, [1, 1, 0])
    steps = iter(range(9))
    monkeypatch.setattr(watched, "_newest_checkpoint", lambda: Path(f"step-{next(steps)}"))
    assert watched.run() == 0
    assert pauses == [0, 0]


def test_the_same_exception_at_the_same_step_is_not_tried_a_third_time(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Failure(3, "ValueError: no")
    pauses = ending(watched, monkeypatch, [1] * 9, fault, Failure(4, fault.words), fault, fault)
    with pytest.raises(TrainingError, match=r"step 3 failed twice .*ValueError: no"):
        watched.run()
    assert len(pauses) == 3


def test_a_rank_that_the_system_killed_for_its_memory_is_not_started_again(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([2, 3])
    monkeypatch.setattr(supervisor, "killed_for_memory", lambda: next(kills))
    pauses = ending(watched, monkeypatch, [247])
    with pytest.raises(TrainingError, match=r"for lack of memory; .*engine\.micro_batches"):
        watched.run()
    assert pauses == []


def test_what_a_run_changes_reaches_its_ranks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where no supervisor is: the option stands where a script of SLURM's puts it."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{data: {path: d}, run: {dir: r}}")
    changed = ["optim.lr=1e-5", "optim.drop_epochs=[20,25]"]
    started: list[tuple[Config, list[str]]] = []
    monkeypatch.setattr(setup, "check_run", lambda *_: None)
    monkeypatch.setattr(
        command, "_supervised", lambda config, words, *_: started.append((config, words))
    )
    with pytest.raises(typer.Exit):
        command.train(
            recipe, ["run.seed=3"], ranks=1, max_restarts=0, resume_with=changed, dry_run=False
        )
    ((config, words),) = started
    assert config.run.resume_with == ("optim.lr", "optim.drop_epochs")

    ranks: list[Config] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(rank, "_settle", lambda _: None)
    monkeypatch.setattr(
        rank, "_train", lambda given, keys, more, _: ranks.append(load_config(given, keys, 1, more))
    )
    options = [word for setting in changed for word in ("--resume-with", setting)]
    for given in (words, ["--config", str(recipe), *options, "run.seed=3"],
                  ["--config", str(recipe), "run.dir=r", *options, "run.seed=3"]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["rank", *given])
        rank.main()
    assert ranks == [config] * 3


def test_a_users_mistake_is_not_tried_again(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ending(watched, monkeypatch, [2]) == []
    assert watched.run() == 2
    assert not (watched._folder.path / "lock").exists()


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_mistake_that_comes_up_while_the_run_stops_is_not_called_a_checkpoint(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As a disk that is full when a rank, asked to stop, writes its checkpoint."""
    error: UserError = CheckpointError("cannot be written")

    def launch() -> int:
        monkeypatch.setenv(FAILURES, watched._environment[FAILURES])
        watched._hear(signal.SIGTERM, None)
        refuse(error)
        return code

    monkeypatch.setattr(watched, "_launch", launch)
    assert watched.run() == 2
    watched._stopping, error = False, OutOfMemory("out of memory", "set less")
    with pytest.raises(OutOfMemory, match="set less"):
        watched.run()


def test_what_a_rank_has_refused_is_not_said_again_of_its_checkpoints(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a folder that another user has made his own: one line, by the rank."""

    def launch() -> int:
        monkeypatch.setenv(FAILURES, watched._environment[FAILURES])
        refuse(CheckpointError("cannot be written"))
        monkeypatch.setattr(watched, "_newest_checkpoint", lambda: pytest.fail("is read"))
        return 1

    monkeypatch.setattr(watched, "_launch", launch)
    assert watched.run() == 2


def test_a_second_start_in_one_folder_starts_nothing(
    watched: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(watched, monkeypatch, [])
    with RunLock(watched._folder.path), pytest.raises(OutputError, match="trains in; wait for it"):
        watched.run()


def test_what_another_ranks_end_brings_about_is_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURES, str(tmp_path))
    note(RuntimeError("Connection closed by peer [127.0.0.1]:3"), 7)
    assert notes(tmp_path) == set()
    note(ValueError("<object at 0x7fe2>\n  is none"), 7)
    assert notes(tmp_path) == {Failure(7, "ValueError: <object at 0x> is none")}
    assert notes(tmp_path) == set()


def test_a_closed_terminal_asks_to_stop_unless_nohup_says_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever runs the tests may be under nohup.
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    assert signal.SIGHUP in stop_signals()
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert stop_signals() == [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


def test_in_a_thread_no_signal_is_asked_for() -> None:
    """After wandb/wandb#2854: signal only works in the main thread."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with StopRequest(ALONE) as stop:
                assert not stop.requested()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


# As a rank is, as far as a supervisor can see: it says that it is there, and heeds SIGTERM.
RANK = """
import os, pathlib, signal, sys, time
from vse_scale.training.__main__ import _settle
from vse_scale.world.place import find_place
place = find_place(os.environ)
_settle(place)
def stop(*_):
    print("rank", place.rank, "checkpoints", flush=True)
    time.sleep(float(os.environ.get("SLOW", "0")))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("rank", place.rank, "path", os.getcwd() in sys.path or "" in sys.path, flush=True)
time.sleep(300)
"""
SUPERVISE = """
import sys
from vse_scale.config import Config
from vse_scale.console import configure_logging
from vse_scale.training import supervisor
configure_logging(main=True)
supervisor._RANK = "stand_in"
config = Config.parse({"data": {"path": "none"}, "run": {"dir": sys.argv[1]}})
sys.exit(supervisor.Supervisor(config, [sys.argv[1]], ranks=2, max_restarts=0).run())
"""


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Group]:
    """A supervisor of two stand-ins, once both are there; a parameter is for how long they stop."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "stand_in.py").write_text(RANK)
    # Packages of DeepSpeed's, as somebody left them in the current folder.
    for name in ("hjson", "psutil"):
        (tmp_path / f"{name}.py").write_text("print('imported from the current folder')\n")
    (tmp_path / "supervise.py").write_text("")
    environment = environment_without_launcher() | {
        "PYTHONPATH": str(modules), "DS_ACCELERATOR": "cpu", "SLOW": getattr(request, "param", "0"),
    }  # fmt: skip
    command = [sys.executable, "-P", "-c", SUPERVISE, tmp_path / "run"]
    with Group(command, environment, tmp_path / "log", cwd=tmp_path) as group:
        assert group.wait_for_words(" path ", times=2, timeout=600), group.said()
        yield group


def ranks_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "stand_in" in line and str(folder) in line:
            found.append(process)
    return found


def all_gone(folder: Path) -> bool:
    deadline = time.monotonic() + 20
    while ranks_of(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_no_rank_outlives_a_killed_supervisor(run: Group, tmp_path: Path) -> None:
    assert len(ranks_of(tmp_path / "run")) >= 2
    run.send(signal.SIGKILL)
    assert all_gone(tmp_path / "run")
    assert run.said().count("path False") == 2
    assert "imported from" not in run.said()


@pytest.mark.slow
def test_ctrl_c_lets_the_ranks_checkpoint(run: Group, tmp_path: Path) -> None:
    run.send_all(signal.SIGINT)  # as a terminal does: to all in its foreground
    assert run.wait(60) == 75, run.said()
    assert run.said().count("checkpoints") == 2
    assert "asked to stop" in run.said()
    assert all_gone(tmp_path / "run")
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("run", ["200"], indirect=True)
def test_a_second_ctrl_c_waits_for_nothing(run: Group, tmp_path: Path) -> None:
    run.send_all(signal.SIGINT)
    assert run.wait_for_words("checkpoints", times=2)
    run.send_all(signal.SIGINT)
    assert run.wait(30) == 130, run.said()
    assert "Traceback" not in run.said()
    assert all_gone(tmp_path / "run")
    assert os.path.isdir(tmp_path / "run")
