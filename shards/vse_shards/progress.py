"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from vse_shards.masking import masked
from vse_shards.terminal import tell


class Progress:
    """Reports units done, rate and remaining time.

    Args:
        label: name of the work, such as ``building``.
        total: number of units, or None if unknown.
        unit: name of the units, plural.
        every: seconds between two lines if stderr is not a terminal.
        initial: units that were done before.
        visible: whether anything is shown.
    """

    _leaves_bar = True  # on the terminal, once the work is over

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        every: float = 5.0,
        *,
        initial: int = 0,
        visible: bool = True,
    ) -> None:
        self._label, self._total, self._unit, self._every = label, total, unit, every
        self._started = self._spoke = time.monotonic()
        self._done = self._initial = initial
        self._visible = visible
        self._bar = (
            tqdm(
                total=total,
                initial=initial,
                desc=label,
                unit=f" {unit}",
                dynamic_ncols=True,
                leave=self._leaves_bar,
            )
            if visible and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def update(self, done: int, note: str = "") -> None:
        """Report ``done`` units in total, with a ``note`` such as ``3 rejected``."""
        step, self._done = done - self._done, done
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            return
        now = time.monotonic()
        if now - self._spoke < self._every:  # a scheduler's log keeps every line
            return
        self._spoke = now
        rate = (done - self._initial) / max(now - self._started, 1e-9)
        left = (self._total - done) / rate if self._total is not None and rate else None
        self._show(self._line(note, rate, left))

    def close(self) -> None:
        """Complete the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, note: str, rate: float, left: float | None) -> str:
        """Return a line; ``rate`` is in units per second, ``left`` in seconds, None if unknown."""
        text = f"{self._label}: {self._done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}, {rate:,.0f}/s"
        if note:
            text += f", {note}"
        if left is not None:
            text += f", {left:,.0f} s left"
        return text

    def _show(self, line: str) -> None:
        say(line)


def say(text: str) -> None:
    """Print one line to stderr; stdout is for results."""
    tell(masked(text), sys.stderr)
