"""A long run is resumed, finished and reported without its records all in memory."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from long_run import make, record

from vse_scale.report.data import KnownFindings
from vse_scale.report.page import write_report
from vse_scale.run.folder import RunFolder, RunRecords
from vse_scale.run.records import StepRecord
from vse_scale.run.series import Steps
from vse_scale.training.resumed import open_journals, results_of
from vse_scale.training.run_state import RunState

STEPS = 3000
MOST = 300  # bytes a record: a million of them within 300 MB; as objects they take 3,800


def drawn(step: int) -> StepRecord:
    return record(step, np.random.default_rng(step).random(12).tolist())


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    make(folder, STEPS)
    return folder


def resume(folder: Path) -> None:
    for journal in open_journals(RunFolder(folder), STEPS):
        journal.close()


def finish(folder: Path) -> None:
    steps = RunFolder(folder).each_step()
    assert results_of(RunState(STEPS, "", {}), 1, steps, [], "val").train_seconds is not None


def report(folder: Path) -> None:
    run = RunFolder(folder)
    write_report(None, RunRecords(run, steps=Steps(run.each_step())), KnownFindings())


@pytest.mark.parametrize("work", [resume, finish, report])
def test_memory_for_a_record_is_small(work: Callable[[Path], None], long_run: Path) -> None:
    work(long_run)  # once, for what is imported
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work(long_run)
        most = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    page = 400_000 if work is report else 100_000  # buffers of files, the page itself
    assert most < page + MOST * STEPS


def test_records_come_back_as_they_were() -> None:
    odd = [
        StepRecord(step=0, loss=0.1),
        dataclasses.replace(drawn(1), applied=False, checkpoint={"stall": 0.5, "write": 2.0}),
        StepRecord(step=7, loss=float("inf"), extra={"note": ["a"]}),
    ]
    records = [*odd, *map(drawn, range(8, 20))]
    steps = Steps(iter(records))
    assert len(steps) == len(records)
    assert steps[-1] == steps[len(records) - 1]
    assert [r.step for r in steps[2:5]] == [7, 8, 9]
    with pytest.raises(IndexError):
        steps[len(records)]
    for found, given in zip(steps, records, strict=True):
        one, two = dataclasses.asdict(found), dataclasses.asdict(given)
        for name in ("step", "epoch", "loss", "objective", "applied", "bytes_sent", "extra"):
            assert one[name] == two[name]
        for name in ("learning_rate", "statistics", "seconds", "checkpoint"):
            assert one[name] == pytest.approx(two[name], rel=1e-7)
        assert found.pairs_per_second == pytest.approx(given.pairs_per_second, nan_ok=True)
    assert not Steps()
