"""Observers that send a run's records to another program's store, every step once.

Sending has a thread of its own: training never waits for a network or a disk that is slow. What the
store lacks when the run goes on is sent from the run's journals; what it has beyond the checkpoint,
of steps that a kill took back, is not sent again when they are trained again. So a store holds each
step once, however often a run is killed.
"""

from __future__ import annotations

import heapq
import queue
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import ClassVar

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import StorageError
from vse_scale.files import write_text
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training.watch.scalars import scalars_of_evaluation, scalars_of_step
from vse_shards.plain_files import read_plain

PROJECT = "vse-scale"  # unless the program's own variable names another
_WAITING = 10_000  # rows, some megabytes
_CLOSING_SECONDS = 60.0


@dataclass(frozen=True)
class Row:
    """The figures of one step or validation.

    Attributes:
        step: of the run, counted from 0.
        validates: whether they are a validation's.
        scalars: by tag.
    """

    step: int
    validates: bool
    scalars: dict[str, float]


@dataclass(frozen=True)
class Held:
    """The last step and validation, by its step, that a store has of a run; -1: none."""

    step: int = -1
    evaluation: int = -1

    def has(self, row: Row) -> bool:
        """Return whether the store has ``row``: it is sent rows in order."""
        return row.step <= (self.evaluation if row.validates else self.step)


class Tracker(ABC):
    """An observer that follows a run into another program's store.

    Attributes:
        package: that it needs, also the name of the extra that installs it.
    """

    package: ClassVar[str]

    def __init__(
        self, config: Config, folder: RunFolder, *, next_step: int, total_steps: int
    ) -> None:
        """Start to follow a run that goes on at ``next_step``, in a thread of its own."""
        self._complete = False
        self._fault: Exception | None = None
        self._rows: queue.Queue[Row | None] = queue.Queue(_WAITING)
        follow = (config, folder, next_step)
        self._thread = threading.Thread(target=self._follow, args=follow, daemon=True)
        self._thread.start()

    def step(self, record: StepRecord) -> None:
        """Take in a training step; raise what went wrong with one before."""
        self._put(_row_of_step(record))

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take in a validation; raise what went wrong with a row before."""
        self._put(_row_of_evaluation(record))

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Take in a checkpoint; raise what went wrong with a row before."""
        self._check()

    def finished(self) -> None:
        """Take in that the run's last step is done."""
        self._complete = True

    def close(self) -> None:
        """Send the rest, and leave the run as complete or not; raise what went wrong."""
        if self._fault is None:
            self._put(None)
        self._thread.join(_CLOSING_SECONDS)
        self._check()
        if self._thread.is_alive():
            raise StorageError(
                f"it has not taken the last {self._rows.qsize()} records within "
                f"{_CLOSING_SECONDS:g} s; metrics.jsonl has them, and the same command sends them"
            )

    @abstractmethod
    def open(self, config: Config, folder: RunFolder, identity: str) -> Held:
        """Begin the run ``identity`` in the store, or go on with it; return what is there."""

    @abstractmethod
    def send(self, rows: list[Row]) -> None:
        """Store ``rows``, in order."""

    @abstractmethod
    def end(self, complete: bool) -> None:
        """Store what waits, and mark the run: ``complete``, or stopped before its last step."""

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _put(self, row: Row | None) -> None:
        self._check()
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            raise StorageError(f"it is {_WAITING} records behind") from None

    def _follow(self, config: Config, folder: RunFolder, next_step: int) -> None:
        try:
            held = self.open(config, folder, identity_of(folder))
            # A validation that the run made up for meanwhile is in the journal and in the queue.
            validated: set[int] = set()
            lacking = (row for row in _written(folder, next_step) if not held.has(row))
            while rows := list(islice(lacking, _WAITING)):
                self.send(rows)
                validated |= {row.step for row in rows if row.validates}
            if held.step >= next_step:
                log.info(
                    "%s has steps up to %d, of before the checkpoint was taken up again; they stay "
                    "as they are", self.package, held.step,
                )  # fmt: skip
            while (row := self._rows.get()) is not None:
                if not held.has(row) and not (row.validates and row.step in validated):
                    self.send([row])
            self.end(self._complete)
        except Exception as error:
            self._fault = error


def identity_of(folder: RunFolder) -> str:
    """Return the run's name in the stores, which all of its starts share; made at the first."""
    try:
        kept = read_plain(folder.identity_file).decode(errors="replace").strip()
    except FileNotFoundError:
        kept = ""
    if not (kept.isalnum() and kept.isascii()):
        kept = uuid.uuid4().hex[:12]
        write_text(folder.identity_file, kept + "\n")
    return kept


def run_name(folder: RunFolder) -> str:
    """Return the run's name for people: its folder's."""
    return folder.path.resolve().name


def _written(folder: RunFolder, next_step: int) -> Iterator[Row]:
    """Yield the rows of the journals before ``next_step``, in the order they were recorded."""
    rows = heapq.merge(
        map(_row_of_step, folder.each_step()),
        map(_row_of_evaluation, folder.evaluations()),
        key=lambda row: (row.step, row.validates),
    )
    return takewhile(lambda row: row.step < next_step, rows)


def _row_of_step(record: StepRecord) -> Row:
    return Row(record.step, False, scalars_of_step(record))


def _row_of_evaluation(record: EvaluationRecord) -> Row:
    return Row(record.step, True, scalars_of_evaluation(record))
