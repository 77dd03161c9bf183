"""Observers from outside: started on the main rank, told of everything, dropped if they fail."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from records import EVALUATION, RECORD

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import ConfigError
from vse_scale.training.setup import check_run
from vse_scale.training.watch.observers import Observers
from vse_scale.world.processes import World

SOURCE = """
class Recorder:
    made = []

    def __init__(self, config, folder, *, next_step, total_steps):
        self.told = [(config.run.seed, folder.path.name, next_step, total_steps)]
        self.made.append(self)

    def step(self, record):
        self.told.append(record.step)

    def evaluation(self, record):
        self.told.append(record.rsum)

    def checkpoint(self, path, seconds):
        self.told.append((path, seconds))

    def close(self):
        self.told.append("closed")


class Failing(Recorder):
    made = []

    def step(self, record):
        super().step(record)
        raise RuntimeError("no\\nconnection")


class Unmade(Recorder):
    def __init__(self, config, folder, *, next_step, total_steps):
        raise OSError("no such host")
"""
QUIET = ["telemetry.prometheus_port=null", "telemetry.tensorboard=false"]


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "foreign_observers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_observers", raising=False)
    import foreign_observers

    return foreign_observers


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING, logger="vse_scale")
    return caplog


def follow(small_run: Path, *names: str, rank: int = 0) -> Observers:
    given = ",".join(f"foreign_observers:{name}" for name in names)
    config = Config.load(small_run, [*QUIET, f"telemetry.observers=[{given}]"])
    return Observers(config, World(rank, 2), next_step=3, total_steps=9)


def tell_all(observers: Observers) -> None:
    for _ in range(2):
        observers.step(RECORD)
    observers.evaluation(EVALUATION)
    observers.checkpoint(Path("step-00000008"), 1.5)
    observers.close()


def test_one_from_outside_is_told_of_everything(small_run, parts, warnings) -> None:
    tell_all(follow(small_run, "Recorder"))
    (made,) = parts.Recorder.made
    name = Path(Config.load(small_run).run.dir).name
    expected = [(0, name, 3, 9), 7, 7, 300.0, (Path("step-00000008"), 1.5), "closed"]
    assert made.told == expected
    assert not warnings.messages


def test_other_ranks_start_none(small_run, parts) -> None:
    tell_all(follow(small_run, "Recorder", rank=1))
    assert not parts.Recorder.made


def test_a_failing_one_is_dropped_with_one_warning(small_run, parts, warnings) -> None:
    tell_all(follow(small_run, "Failing", "Unmade", "Recorder"))
    assert parts.Failing.made[0].told[1:] == [7]
    assert parts.Recorder.made[0].told[-1] == "closed"
    unmade, failing = warnings.messages
    assert "foreign_observers:Unmade failed" in unmade
    assert "OSError: no such host" in unmade
    assert "foreign_observers:Failing failed" in failing
    assert "RuntimeError: no connection" in failing


@pytest.mark.parametrize("name", ["nobody", "foreign_observers:Nobody", "no_such_module:Observer"])
def test_an_unknown_one_is_refused_before_the_run(small_run, parts, name: str) -> None:
    config = Config.load(small_run, [f"telemetry.observers=[{name}]"])
    with pytest.raises(ConfigError, match=r"^telemetry\.observers: observer ") as caught:
        check_run(config, 1)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
