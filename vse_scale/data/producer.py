"""One background thread that keeps a few items ahead of their consumer, and its depth."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Batches inside the DALI graph: one is decoded while the one before it waits to be taken.
GRAPH_BATCHES = 2


def batches_in_memory(prefetch: int) -> int:
    """Return the largest number of batches whose pixels a rank holds at a time.

    Args:
        prefetch: length of the loader's queue.
    """
    return prefetch + GRAPH_BATCHES + 1  # a full queue, the graph's, and the one trained on


def batches_apart(prefetch: int) -> int:
    """Return the largest number of consecutive batches that the ranks of a node read from at once.

    Ranks train in step, so no rank is further ahead than what it holds and has just requested.

    Args:
        prefetch: length of the loader's queue.
    """
    return batches_in_memory(prefetch) + 1


class Producer(Generic[Item]):
    """A thread that puts items, or the error that ended them, into a bounded queue.

    It closes the generator of the items when it ends.

    Args:
        items: generator of the items, run in the thread.
        depth: length of the queue.
    """

    def __init__(self, items: Generator[Item], depth: int) -> None:
        self._items = items
        self._queue: Queue[Item | BaseException] = Queue(depth)
        self._stopped = threading.Event()
        # A daemon, because the interpreter joins other threads before it runs finalizers.
        self._thread = threading.Thread(target=self._run, name="vse-loader", daemon=True)
        # Exit handlers run last in, first out. This one must run before DALI's, which destroys the
        # pipelines that the thread uses; the handler of weakref.finalize may run after it.
        atexit.register(self.stop)
        self._thread.start()

    def take(self) -> Item | BaseException:
        """Wait for the next item, or the error that ended them, and return it."""
        return self._queue.get()

    def stop(self) -> None:
        """End the thread, even while the queue is full; ``take`` then returns an error."""
        atexit.unregister(self.stop)
        self._stopped.set()
        self._empty()
        # Garbage collection may call this in the thread itself, or in a thread that it waits for,
        # where joining it would never return; it then ends on its own.
        if not threading.current_thread().name.startswith("vse-"):
            self._thread.join()
        self._empty()
        with suppress(Full):
            self._queue.put_nowait(RuntimeError("the loader is closed"))

    def _empty(self) -> None:
        with suppress(Empty):
            while True:
                self._queue.get_nowait()

    def _put(self, item: Item | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except Full:
                continue
            return

    def _run(self) -> None:
        try:
            with closing(self._items):
                for item in self._items:
                    self._put(item)
                    if self._stopped.is_set():
                        return
        except BaseException as error:  # the consumer raises it
            self._put(error)
