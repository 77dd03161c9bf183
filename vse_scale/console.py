"""Messages to people: the log, progress of long work, and signs of life of silent work."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vse_shards import progress
from vse_shards.masking import masked
from vse_shards.terminal import printable, printable_lines

log = logging.getLogger("vse_scale")

LINE_SECONDS = 5.0  # between two lines of progress without a terminal
HEARTBEAT_SECONDS = 8.0  # a screen that is silent for ten seconds looks like a hanging process


class _Formatter(logging.Formatter):
    """Masks the passwords of URLs, and writes out what would steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(masked(super().format(record)))


def configure_logging(*, main: bool) -> None:
    """Log to standard error: information on the main rank, only warnings on the others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if main else logging.WARNING)


@contextmanager
def logged(*, main: bool) -> Iterator[None]:
    """Log as `configure_logging` does for the block, unless the program logs in a way of its own.

    This is for calls from Python, which would be silent for as long as they last.
    """
    if log.hasHandlers():
        yield
        return
    level, propagate = log.level, log.propagate
    configure_logging(main=main)
    try:
        yield
    finally:
        log.handlers.clear()
        log.propagate = propagate
        log.setLevel(level)


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep back what transformers says of a file, in the file's own words, and its bar."""
    from transformers.utils import logging as report  # takes seconds

    level, bar = report.get_verbosity(), report.is_progress_bar_enabled()
    report.set_verbosity_error()
    report.disable_progress_bar()
    try:
        yield
    finally:
        report.set_verbosity(level)
        if bar:
            report.enable_progress_bar()


def duration(seconds: float) -> str:
    """Return a number of seconds, rounded, as ``m:ss`` or, from an hour on, ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Return a number of bytes as megabytes or, from a tenth on, as gigabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def heartbeat(what: str, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Log ``what`` every `HEARTBEAT_SECONDS`, with its age, while the block runs; and ``tell``.

    This is for work that reports no progress, such as joining the other ranks. A thread logs, so
    the block must release Python's global lock now and then.
    """
    done = threading.Event()
    start = time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            log.info("%s (%s)", what, duration(time.monotonic() - start))
            tell()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Progress(progress.Progress):
    """The progress of a command that logs: its lines carry the time of day, its bar disappears."""

    _leaves_bar = False

    def __init__(
        self, label: str, total: int, *, unit: str, initial: int = 0, visible: bool = True
    ) -> None:
        super().__init__(label, total, unit, LINE_SECONDS, initial=initial, visible=visible)

    def advance(self, units: int = 1, details: str = "") -> None:
        """Report ``units`` more as done, with ``details`` such as the loss."""
        self.update(self._done + units, details)

    def _line(self, note: str, rate: float, left: float | None) -> str:
        done = f"{self._label} {self._done}/{self._total} {self._unit}"
        remaining = "?" if left is None else duration(left)
        return "  ".join(part for part in (done, note, f"{remaining} left") if part)

    def _show(self, line: str) -> None:
        log.info("%s", line)


@contextmanager
def progress_of_encoding(*, visible: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yield the ``progress`` that ``encode_split`` calls, which shows one `Progress` a kind."""
    current: Progress | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal current
        if done == 0:
            if current is not None:
                current.close()
            current = Progress(f"encoding {what}", total, unit=what, visible=visible)
        elif current is not None:
            current.update(done)

    try:
        yield report
    finally:
        if current is not None:
            current.close()
