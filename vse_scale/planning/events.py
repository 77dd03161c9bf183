"""A simulated clock, processes that wait on it, and links that share their bandwidth."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt

from vse_scale.errors import UserError

_NEVER = float("inf")


class Signal:
    """Something that happens once; processes wait for it."""

    def __init__(self) -> None:
        self.fired = False
        self.waiting: list[Callable[[], None]] = []

    def fire(self) -> None:
        """Let it happen; whoever waits goes on."""
        self.fired = True
        waiting, self.waiting = self.waiting, []
        for resume in waiting:
            resume()


Process = Generator[Signal, None, None]


class Clock:
    """Simulated seconds; what is due next happens next.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after a time."""
        heapq.heappush(self._due, (self.now + seconds, next(self._number), call))

    def wait(self, seconds: float) -> Signal:
        """Return what fires after a time."""
        signal = Signal()
        self.later(seconds, signal.fire)
        return signal

    def start(self, process: Process) -> None:
        """Run a process: a generator of the signals that it waits for."""
        for signal in process:
            if not signal.fired:
                signal.waiting.append(lambda: self.later(0.0, lambda: self.start(process)))
                return

    def run(self, links: Links, until: Signal) -> None:
        """Let time pass until a signal fires.

        Raises:
            UserError: nothing is due any more, so that all wait for ever.
        """
        while not until.fired:
            due = self._due[0][0] if self._due else _NEVER
            transferred = self.now + links.next()
            if min(due, transferred) == _NEVER:
                raise UserError("the simulated run waits for ever")
            passed, self.now = min(due, transferred) - self.now, min(due, transferred)
            if transferred < due:
                links.advance(passed, finish=True)
            else:
                links.advance(passed, finish=False)
                heapq.heappop(self._due)[2]()


class Links:
    """A link into each node, and one storage behind all of them.

    The transfers of a node have equal shares of its link. Where the storage gives less than all
    links take, every transfer has an equal share of it, but for those whose links give them less
    (max-min fairness; Bertsekas and Gallager, "Data Networks", 1992, section 6.5).

    Args:
        nodes: number of nodes.
        link: bytes a second into a node.
        storage: bytes a second of the storage to all nodes; infinite where it does not bind.
    """

    def __init__(self, nodes: int, link: float, storage: float = _NEVER) -> None:
        self._link, self._storage = link, storage
        # A transfer ends when the bytes that each transfer of its node has got since the start
        # reach its own: those do not depend on who begins or ends meanwhile.
        self._given = np.zeros(nodes)
        self._ends: list[list[tuple[float, int, Signal]]] = [[] for _ in range(nodes)]
        self._first = np.full(nodes, _NEVER)
        self._count = np.zeros(nodes)
        self._rates = np.zeros(nodes)
        self._number = itertools.count()

    def transfer(self, node: int, size: int) -> Signal:
        """Begin to transfer bytes into a node; return what fires at the end."""
        signal = Signal()
        end = float(self._given[node]) + size
        heapq.heappush(self._ends[node], (end, next(self._number), signal))
        self._changed(node)
        return signal

    def next(self) -> float:
        """Return the seconds until a transfer ends."""
        return float(self._remaining().min())

    def advance(self, seconds: float, *, finish: bool) -> None:
        """Let time pass; with ``finish`` until the next transfer ends."""
        node = int(self._remaining().argmin()) if finish else -1
        self._given += self._rates * seconds
        if finish:
            self._given[node] = self._first[node]  # exact
            _, _, signal = heapq.heappop(self._ends[node])
            self._changed(node)
            signal.fire()

    def _remaining(self) -> npt.NDArray[np.float64]:
        rates = np.where(self._count > 0, self._rates, 1.0)
        return np.maximum(self._first - self._given, 0.0) / rates

    def _changed(self, node: int) -> None:
        self._count[node] = len(self._ends[node])
        self._first[node] = self._ends[node][0][0] if self._ends[node] else _NEVER
        self._rates = np.divide(
            self._link, self._count, out=np.zeros_like(self._count), where=self._count > 0
        )
        if self._storage < self._link * np.count_nonzero(self._count):
            self._rates = np.minimum(self._rates, self._level())

    def _level(self) -> float:
        """Return the rate of a transfer that its own link does not bind."""
        busy = self._count > 0
        rates, counts = self._rates[busy], self._count[busy]
        order = np.argsort(rates)
        rates, counts = rates[order], counts[order]
        before = np.cumsum(rates * counts) - rates * counts
        levels = (self._storage - before) / np.cumsum(counts[::-1])[::-1]
        return float(levels[int(np.argmax(rates >= levels))])
