"""One background thread that keeps a few items ahead of who takes them."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Producer(Generic[Item]):
    """A thread that puts items, or the error that ended them, into a bounded queue.

    It closes the generator of the items when it ends.
    """

    def __init__(self, items: Generator[Item], depth: int) -> None:
        self._items = items
        self._queue: Queue[Item | BaseException] = Queue(depth)
        self._stopped = threading.Event()
        # A daemon: the interpreter joins other threads before it runs finalizers.
        self._thread = threading.Thread(target=self._run, name="vse-loader", daemon=True)
        # Exit handlers run last in, first out: this one must come before DALI's, which takes the
        # pipelines down, and that of weakref.finalize may not.
        atexit.register(self.stop)
        self._thread.start()

    def take(self) -> Item | BaseException:
        """Wait for the next item."""
        return self._queue.get()

    def stop(self) -> None:
        """End the thread, also where it waits for room in the queue; ``take`` then says so."""
        atexit.unregister(self.stop)
        self._stopped.set()
        self._empty()
        # Garbage collection may call this from the thread itself or from one of those that it waits
        # for; it then ends on its own, and nobody is left to take what it still puts.
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
        except BaseException as error:  # raised again in the consumer
            self._put(error)
