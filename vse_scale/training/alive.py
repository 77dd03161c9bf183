"""Signs of life of ranks, and how long there has been none.

A rank that waits in a collective for a silent one leaves it by itself. Nobody waits for a rank that
is alone, or when all of them wait for the same disk: their parent watches a file that they touch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vse_scale.console import heartbeat
from vse_scale.training.contract import FAILURES

_NAME = "alive"
_LONGEST_LOOK = 1.0  # seconds between two looks that count: a supervisor may be stopped too


def tell_alive() -> None:
    """Tell the supervisor, where there is one, that this rank got on with its work."""
    folder = os.environ.get(FAILURES)
    if folder is not None:
        with suppress(OSError):
            Path(folder, _NAME).touch()


@contextmanager
def long_work(what: str) -> Iterator[None]:
    """Tell, and log, that this rank is alive for as long as the block runs.

    This is for work without parts, whose end cannot be told from a hang.
    """
    tell_alive()
    with heartbeat(what, tell_alive):
        yield
    tell_alive()


class Silence:
    """The time since a rank last told that it is alive, or since the start where none has yet.

    Args:
        folder: that `FAILURES` names.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        with suppress(OSError):
            self._path.unlink(missing_ok=True)  # of the start before
        self._seen: int | None = None
        self._looked = time.monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        """Look, and return for how long it has been silent; call this more than once a second."""
        now, told = time.monotonic(), self._told()
        self._seconds += min(now - self._looked, _LONGEST_LOOK)
        self._looked = now
        # Nobody can tell anything where the folder was cleared away.
        if told != self._seen or not self._path.parent.is_dir():
            self._seen, self._seconds = told, 0.0
        return self._seconds

    @property
    def is_first(self) -> bool:
        """Whether no rank has told anything since the start."""
        return self._seen is None

    def _told(self) -> int | None:
        """Return the file's time: any other is a sign, for a clock may be set back."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None
