"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Reports units done, rate and remaining time.

    Args:
        label: name of the work, such as ``building``.
        total: number of units, or None if unknown.
        unit: name of the units, plural.
        every: seconds between two lines if stderr is not a terminal.
    """

    def __init__(self, label: str, total: int | None, unit: str, every: float = 5.0) -> None:
        self._label, self._total, self._unit, self._every = label, total, unit, every
        self._started = self._spoke = time.monotonic()
        self._done = 0
        self._bar = (
            tqdm(total=total, desc=label, unit=f" {unit}", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def update(self, done: int, note: str = "") -> None:
        """Report ``done`` units in total, with a ``note`` such as ``3 rejected``."""
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            return
        now = time.monotonic()
        if now - self._spoke < self._every:  # a scheduler's log keeps every line
            return
        self._spoke = now
        rate = done / max(now - self._started, 1e-9)
        text = f"{self._label}: {done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}, {rate:,.0f}/s"
        if note:
            text += f", {note}"
        if self._total is not None and done:
            text += f", {(self._total - done) / rate:,.0f} s left"
        say(text)


def say(text: str) -> None:
    """Print one line to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)
