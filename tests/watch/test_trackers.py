"""W&B, MLflow and trackio hold every step once, however often a run is killed.

After allenai/tango#152 and wandb/wandb#4482 (a resumed run's steps are dropped, or drawn twice),
wandb/wandb#919 and fairseq#4619 (a run that is over hangs), mlflow/mlflow#3228 and #4248 (a resumed
run has another state, or is another run).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from records import EVALUATION, RECORD
from tracked_run import STARTS, STEPS, loss_of

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import ConfigError
from vse_scale.run.extras import is_installed
from vse_scale.run.folder import RunFolder
from vse_scale.training.resumed import open_journals
from vse_scale.training.setup import check_run
from vse_scale.training.watch import observers as watch
from vse_scale.training.watch import tracker
from vse_scale.training.watch.observers import Observers
from vse_scale.world.processes import World

HERE = Path(__file__).parent
STORES = ("wandb", "mlflow", "trackio")
QUIET = ["telemetry.prometheus_port=null", "telemetry.tensorboard=false"]


def record_run(root: Path, name: str) -> None:
    found = os.pathsep.join([str(HERE), str(HERE.parent / "support")])
    done = subprocess.run(
        [sys.executable, str(HERE / "tracked_run.py"), str(root), name],
        env=os.environ | {"PYTHONPATH": found, "TRACKIO_DIR": str(root / "trackio")},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    assert "failed and is dropped" not in done.stderr
    assert not done.stdout


def of_wandb(folder: RunFolder, root: Path) -> tuple[list, list, str]:
    from vse_scale.training.watch.weights_and_biases import _logged

    parts = sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))
    assert len({part.name for part in parts}) == 1, "a resumed run is another run"
    assert len(parts) >= len(STARTS) - 1  # one may have been killed before it had a part
    rows = [row for part in parts for row in _logged(part)]
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    return (
        [(row["trained_step"], row["loss"]) for row in rows if "loss" in row],
        [(row["evaluated_step"], row["rsum"]) for row in rows if "rsum" in row],
        "FINISHED",
    )


def of_mlflow(folder: RunFolder, root: Path) -> tuple[list, list, str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.path / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.params["optim.drop_epochs"] == "[2.0]"
    steps, validations = (
        sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, name))
        for name in ("loss", "rsum")
    )
    return steps, validations, run.info.status


def of_trackio(folder: RunFolder, root: Path) -> tuple[list, list, str]:
    import sqlite3

    (database,) = (root / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        runs = opened.execute("select distinct run_name from metrics").fetchall()
        assert len(runs) == 1, "a resumed run is another run"
        of = "select step, json_extract(metrics, '$.{0}') v from metrics where v not null"
        steps, validations = (
            sorted(opened.execute(of.format(name)).fetchall()) for name in ("loss", "rsum")
        )
    return steps, validations, "FINISHED"


@pytest.mark.parametrize("name", STORES)
def test_a_run_killed_twice_is_one_run_with_each_step_once(small_run: Path, name: str) -> None:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed: pip install 'vse-scale[{name}]'")
    root = small_run.parent
    record_run(root, name)
    folder = RunFolder(Path(Config.load(small_run).run.dir))
    read = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}[name]
    steps, evaluations, status = read(folder, root)
    assert steps == [(step, loss_of(step)) for step in range(STEPS)]
    assert evaluations == [(step, float(step)) for step in range(9, STEPS, 10)]
    assert status == "FINISHED"


@pytest.mark.parametrize("name", STORES)
def test_no_store_keeps_a_secret_of_the_command(
    small_run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed: pip install 'vse-scale[{name}]'")
    monkeypatch.setattr(sys, "argv", ["train", "data.path=s3://AKIA:hunter2@bucket/set"])
    monkeypatch.setenv("TRACKIO_DIR", str(small_run.parent / "trackio"))
    config = Config.load(small_run, [*QUIET, f"telemetry.observers=[{name}]"])
    folder = RunFolder(Path(config.run.dir))
    folder.path.mkdir()
    for journal in open_journals(folder, 0):
        journal.close()
    observers = Observers(config, World(0, 1), next_step=0, total_steps=9)
    observers.step(RECORD)
    observers.close()
    kept = [path for path in small_run.parent.rglob("*") if path.is_file()]
    assert [path for path in kept if path.suffix in (".wandb", ".db")]
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]


class Store(tracker.Tracker):
    """A store in this process, which keeps what it was sent and fails or hangs as it is told."""

    package = "json"
    rows: list[tuple[int, bool]] = []  # noqa: RUF012
    held = tracker.Held()
    fault: Exception | None = None
    gate = threading.Event()
    complete: list[bool] = []  # noqa: RUF012

    def open(self, config, folder, identity):
        self.gate.wait()
        return self.held

    def send(self, rows):
        if self.fault is not None:
            raise self.fault
        self.rows.extend((row.step, row.validates) for row in rows)

    def end(self, complete):
        self.complete.append(complete)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch):
    fresh = {"rows": [], "complete": [], "gate": threading.Event(), "held": tracker.Held()}
    for name, value in {**fresh, "fault": None}.items():
        monkeypatch.setattr(Store, name, value)
    Store.gate.set()
    monkeypatch.setattr(watch.OBSERVERS, "find", lambda name: Store)
    return Store


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(log, "propagate", True)
    return caplog


def follow(small_run: Path, next_step: int, rank: int = 0) -> Observers:
    config = Config.load(small_run, QUIET)
    folder = RunFolder(Path(config.run.dir))
    folder.path.mkdir(exist_ok=True)
    steps, evaluations = open_journals(folder, 99)
    for step in range(next_step):
        steps.write(replace(RECORD, step=step))
    evaluations.write(replace(EVALUATION, step=next_step - 1))
    steps.close()
    evaluations.close()
    return Observers(config, World(rank, 2), next_step=next_step, total_steps=9)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (tracker.Held(), [(0, False), (1, False), (2, False), (2, True), (3, False), (4, False)]),
        (tracker.Held(1, -1), [(2, False), (2, True), (3, False), (4, False)]),
        (tracker.Held(2, -1), [(2, True), (3, False), (4, False)]),
        (tracker.Held(3, 2), [(4, False)]),
        (tracker.Held(8, 8), []),
    ],
)
def test_a_store_is_sent_what_it_lacks(small_run: Path, store, held, expected) -> None:
    store.held = held
    observers = follow(small_run, 3)
    for step in (3, 4):
        observers.step(replace(RECORD, step=step))
    observers.finished()
    observers.close()
    assert store.rows == expected
    assert store.complete == [True]


def test_a_stopped_run_is_not_complete(small_run: Path, store) -> None:
    follow(small_run, 3).close()
    assert store.complete == [False]


def test_a_failing_store_is_one_warning(small_run: Path, store, warnings) -> None:
    store.fault = OSError("no\nnetwork")
    observers = follow(small_run, 3)
    for step in range(3, 9):
        observers.step(replace(RECORD, step=step))
    observers.close()
    (line,) = [record for record in warnings.messages if "dropped" in record]
    assert line.endswith("the run goes on without it (OSError: no network)")


def test_a_hanging_store_holds_nothing_up(small_run: Path, store, warnings, monkeypatch) -> None:
    monkeypatch.setattr(tracker, "_CLOSING_SECONDS", 0.05)
    store.gate.clear()
    observers = follow(small_run, 3)
    observers.step(replace(RECORD, step=3))
    observers.close()
    (line,) = [record for record in warnings.messages if "dropped" in record]
    assert "metrics.jsonl has them, and the same command sends them" in line
    store.gate.set()
    while not store.complete:  # of the thread, which would be heard in the next test
        time.sleep(0.01)


def test_other_ranks_send_nothing(small_run: Path, store) -> None:
    observers = follow(small_run, 3, rank=1)
    observers.close()
    assert not store.rows
    assert not store.complete


@pytest.mark.parametrize("name", STORES)
def test_a_missing_package_is_refused_before_the_run(
    small_run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "is_installed", lambda package: False)
    config = Config.load(small_run, [f"telemetry.observers=[{name}]"])
    with pytest.raises(ConfigError, match=rf"pip install 'vse-scale\[{name}\]'"):
        check_run(config, 1)


def test_each_store_has_an_extra() -> None:
    import tomllib

    text = (HERE.parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for name in STORES:
        kind = watch.OBSERVERS.find(name)
        assert kind.package in extras
        assert extras[kind.package][0].startswith(kind.package)


def test_a_mistyped_method_is_refused() -> None:
    class Mine:
        def on_step(self, record): ...

        def evaluation(self, record): ...

        def checkpoint(self, path, seconds): ...

    with pytest.raises(ConfigError, match=r"observers\[0\] is Mine, without step and close"):
        watch.check_followers([Mine()])
    with pytest.raises(ConfigError, match=r"observers\[0\] is the class Mine; give an object"):
        watch.check_followers([Mine])


def test_an_object_follows_and_is_dropped_where_it_fails(small_run: Path, warnings) -> None:
    told = []

    class Mine:
        def step(self, record):
            told.append(record.step)
            raise RuntimeError("mine")

        def evaluation(self, record): ...

        def checkpoint(self, path, seconds): ...

        def close(self): ...

    config = Config.load(small_run, QUIET)
    made = Observers(config, World(0, 1), [Mine()], next_step=0, total_steps=9)
    for _ in range(2):
        made.step(RECORD)
    made.close()
    assert told == [RECORD.step]
    assert "observers[0] (Mine) failed and is dropped" in warnings.text
