"""Checkpoints written behind the steps: training waits for a copy in memory, not for the disk.

A thread of each rank sends that rank's copy to the main one, whose thread hashes and writes the
whole and renames it: then the checkpoint counts. A large one is written by all, each its copy, and
hashed by the main one. A kill before that leaves the one before.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vse_scale.console import log
from vse_scale.errors import UserError
from vse_scale.training.alive import long_work, tell_alive
from vse_scale.training.checkpoint import Checkpoints
from vse_scale.training.failures import rank_is_gone
from vse_scale.training.run_state import RunState
from vse_scale.training.snapshot import Shares, Snapshot
from vse_scale.world.processes import World

_LOOK_SECONDS = 10.0  # between two looks of all ranks at whether the main one is done
_LET_GO_SECONDS = 5.0  # that a thread has to leave its folder clean when the run is ended at once


class HasShares(Protocol):
    """An object whose state a checkpoint keeps: the engine."""

    def shares(self) -> Shares:
        """Yield what this rank holds of it."""
        ...


@dataclass(frozen=True)
class Written:
    """A checkpoint that counts.

    Attributes:
        path: its folder.
        stall_seconds: that the steps of this rank waited: for the checkpoint before and the copy.
        write_seconds: from the beginning of the copy until it counted.
    """

    path: Path
    stall_seconds: float
    write_seconds: float


class _Ended(Exception):
    """Raised in the thread: the run ends at once."""


class Writer:
    """Writes the checkpoints of a run, one at a time; every rank has one.

    Within its ``with`` block. At the end of the block, or at an exception, what is being written is
    waited for; at a Ctrl-C it is given up.

    Args:
        checkpoints: that the main rank writes to.
        world: the ranks.
        timeout_seconds: longest wait for another rank.
        tell: is called on the main rank, by `look`, `begin` or `finish`, of what was written.
        gather_gb: most that the main rank gathers, in units of 10**9 bytes; all write more.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        world: World,
        timeout_seconds: float,
        tell: Callable[[Written], None],
        gather_gb: float = math.inf,
    ) -> None:
        self._checkpoints, self._world, self._tell = checkpoints, world, tell
        self._gather_bytes = 1e9 * gather_gb
        self._snapshot = Snapshot(world, timeout_seconds)
        self._patience = min(_LOOK_SECONDS, timeout_seconds / 3)
        self._thread: threading.Thread | None = None
        self._result: Future[Path | None] = Future()
        self._began = self._stall = 0.0
        self._last: Written | None = None
        self._end_at_once = threading.Event()

    def begin(self, engine: HasShares, state: RunState) -> None:
        """Copy the state, and write it while the caller goes on; every rank calls this.

        Raises:
            UserError: on all ranks: the checkpoint before this could not be written.
        """
        began = time.perf_counter()
        self.finish()
        copied = time.perf_counter()
        with long_work("copying the state for a checkpoint"):
            self._snapshot.take(engine.shares())
        self._began, self._stall = copied, time.perf_counter() - began
        self._result = Future()
        self._thread = threading.Thread(
            target=self._write, args=(state, self._result), name="checkpoint", daemon=True
        )
        self._thread.start()

    def look(self) -> None:
        """Tell of what was written meanwhile; this waits for nobody.

        Raises:
            CheckpointError: on the main rank: it cannot be written, as on a full disk.
            StorageError: the same, for a while.
            RuntimeError: another rank is gone.
        """
        if self._thread is not None and self._result.done():
            self._end()

    def finish(self) -> None:
        """Wait until nothing is being written; every rank calls, and all agree that it counts.

        Raises:
            UserError: on all ranks: it could not be written.
            RuntimeError: another rank is gone.
        """
        fault: UserError | None = None
        try:
            with nullcontext() if self._thread is None else long_work("writing a checkpoint"):
                # The others ask again and again: a disk may take longer than a rank is waited for.
                while self._world.from_main(self._is_writing()):
                    tell_alive()
                if self._thread is not None:
                    self._thread.join()
            if self._thread is not None:
                self._end()
        except UserError as error:
            fault = error
        if (fault := self._world.from_main(fault)) is not None:
            raise fault

    def last_seconds(self) -> dict[str, float]:
        """Return "stall" and "write" of the checkpoint since the last call; empty if there is none.

        On every rank but the main one there is none.
        """
        written, self._last = self._last, None
        if written is None:
            return {}
        return {"stall": written.stall_seconds, "write": written.write_seconds}

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        elif self._thread is not None:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Let the thread end, whose own error would hide ``error``, which ends the run."""
        assert self._thread is not None
        if not isinstance(error, Exception):
            self._end_at_once.set()
            self._thread.join(_LET_GO_SECONDS)
        elif self._world.main or not rank_is_gone(error):
            with long_work("writing a checkpoint"):
                self._thread.join()
            try:
                self._end()
            except Exception as second:
                if not rank_is_gone(second):
                    log.warning("%s", " ".join(str(second).split()))

    def _end(self) -> None:
        self._thread = None
        path = self._result.result()
        if path is not None:
            self._last = Written(path, self._stall, self._ended - self._began)
            self._tell(self._last)

    def _is_writing(self) -> bool:
        if self._thread is None or not self._world.main:
            return False  # of the others nobody hears
        self._thread.join(self._patience)
        return self._thread.is_alive()

    def _write(self, state: RunState, result: Future[Path | None]) -> None:
        try:
            if self._snapshot.exceeds(self._gather_bytes):
                path = self._write_together(state)
            else:
                tensors = self._snapshot.whole()
                path = None
                if self._world.main:
                    path = self._checkpoints.write(tensors, state, self._check)
            self._ended = time.perf_counter()
            result.set_result(path)
        except BaseException as error:  # of a thread: raised by `_end`
            result.set_exception(error)

    def _write_together(self, state: RunState) -> Path | None:
        if not self._world.main:
            self._snapshot.help_write(self._check)
            return None
        try:
            return self._checkpoints.write(
                lambda path: self._snapshot.write(path, self._check), state
            )
        finally:
            self._snapshot.release()

    def _check(self) -> None:
        if self._end_at_once.is_set():
            raise _Ended
