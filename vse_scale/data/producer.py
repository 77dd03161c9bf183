"""One background thread that keeps a few items ahead of who takes them."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Producer(Generic[Item]):
    """A thread that puts items, or the error that ended them, into a bounded queue."""

    def __init__(self, items: Iterator[Item], depth: int) -> None:
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
        # Garbage collection may call this from the thread itself, which then ends on its own.
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._empty()
        self._queue.put_nowait(RuntimeError("the loader is closed"))

    def _empty(self) -> None:
        with suppress(Empty):
            while True:
                self._queue.get_nowait()

    def _run(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
                if self._stopped.is_set():
                    return
        except BaseException as error:  # raised again in the consumer
            self._queue.put(error)
