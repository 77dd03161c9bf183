"""What a run says while it goes: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

log = logging.getLogger("vse_scale")

LINE_SECONDS = 5.0  # without a terminal, a line this often
HEARTBEAT_SECONDS = 8.0  # nobody should look at a silent screen for ten seconds


def configure_logging(*, main: bool) -> None:
    """Log to standard error: information on the main rank, only warnings on the others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.WARNING)


def duration(seconds: float) -> str:
    """Return ``seconds`` as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def heartbeat(what: str) -> Iterator[None]:
    """Log ``what`` again and again, with its age, while the block runs silently."""
    done = threading.Event()
    start = time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            log.info("%s (%s)", what, duration(time.monotonic() - start))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Progress:
    """Progress over ``total`` units of work, from ``initial`` on; shown only if ``visible``."""

    def __init__(
        self, what: str, total: int, *, initial: int = 0, unit: str = "it", visible: bool = True
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._initial = initial
        self._visible = visible
        self._start = self._last = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if visible and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, desc=what, unit=unit, leave=False)

    def advance(self, units: int = 1, details: str = "") -> None:
        """Count ``units`` more as done, with ``details`` of how it goes."""
        self._done += units
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(details, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            rate = (self._done - self._initial) / (now - self._start)
            left = duration((self._total - self._done) / rate) if rate else "?"
            parts = [f"{self._what} {self._done}/{self._total} {self._unit}", details]
            log.info("%s", "  ".join(p for p in [*parts, f"{left} left"] if p))

    def advance_to(self, done: int) -> None:
        """Count all up to ``done`` units as done."""
        self.advance(done - self._done)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_of_encoding(*, visible: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what ``encode_split`` reports to: images first, then captions, each with its total."""
    current: Progress | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal current
        if done == 0:
            if current is not None:
                current.close()
            current = Progress(f"encoding {what}", total, unit=what, visible=visible)
        elif current is not None:
            current.advance_to(done)

    try:
        yield report
    finally:
        if current is not None:
            current.close()
