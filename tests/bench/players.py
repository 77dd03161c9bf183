"""Implementations whose turns a test can tell apart; they run in processes of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from vse_scale.bench.comparison import Sample
from vse_scale.errors import DatasetError


def worker(seconds: float, units: float = 1.0) -> Iterator[Sample]:
    while True:
        time.sleep(seconds)
        yield Sample(units, seconds, {"data": seconds / 4})


def restless() -> Iterator[Sample]:
    """Counts in a thread; a turn's units are the counts between the last turn and this one."""
    count = [0]

    def go_on() -> None:
        while True:
            count[0] += 1
            time.sleep(0.01)

    threading.Thread(target=go_on, daemon=True).start()
    while True:
        before = count[0]
        yield Sample(1 + count[0] - before, 1.0)
        # Here again when asked for the next turn.
        idle = count[0] - before
        time.sleep(0.1)
        yield Sample(1 + idle, 1.0)


def hungry(mebibytes: int) -> Iterator[Sample]:
    while True:
        held = bytearray(os.urandom(1 << 20) * mebibytes)
        time.sleep(0.3)
        yield Sample(len(held), 1.0)


def refused() -> Iterator[Sample]:
    yield Sample(1, 1.0)
    raise DatasetError("photo 7 is broken")


def mistaken() -> Iterator[Sample]:
    yield Sample(1, 1.0)
    raise ZeroDivisionError("a mistake of the code")


def killed() -> Iterator[Sample]:
    yield Sample(1, 1.0)
    os._exit(3)


def sleeping_child() -> Iterator[Sample]:
    """Has a process of its own, as a DataLoader does; a turn's units are its id."""
    import subprocess

    child = subprocess.Popen(["sleep", "600"])
    while True:
        yield Sample(child.pid, 1.0)
