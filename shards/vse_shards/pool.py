"""Worker processes that write shards in parallel, with progress per image."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vse_shards.errors import DatasetError, OutputError
from vse_shards.images import ImageOptions
from vse_shards.masking import masked
from vse_shards.output import OutputFolder
from vse_shards.progress import Progress
from vse_shards.rows import RowStore
from vse_shards.shard import ShardPlan, finished, make_shard, shard_fingerprint
from vse_shards.system import only_packages

T = TypeVar("T")
R = TypeVar("R")

_FEW = 1000  # items for which no process is started
_CHUNK = 32  # items that a process takes at once
_DONE, _REJECTED, _STOP = range(3)
_counters: SynchronizedArray[int]


@dataclass(frozen=True)
class Task:
    """One shard to write.

    Attributes:
        split: name of the split.
        plan: name and keys of the shard.
        numbers: row numbers in the store, in order, (rows,) int64.
        out: folder or URL of the dataset.
        store: file of the rows.
        options: conversion of images.
        owner: name of the build, as `OutputFolder` has it.
        planned: fingerprint that a plan for several machines gives the shard; "" without one.
    """

    split: str
    plan: ShardPlan
    numbers: NDArray[np.int64]
    out: str
    store: Path
    options: ImageOptions
    owner: str = ""
    planned: str = ""


def each(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield the results of a function for each item in their order; many are shared by processes.

    Raises:
        OutputError: a worker died.
    """
    waiting = iter(items)
    first = list(islice(waiting, _FEW))
    if workers == 1 or len(first) < _FEW:
        yield from map(function, chain(first, waiting))
        return
    context = multiprocessing.get_context("spawn")
    try:
        with (
            only_packages(),
            ProcessPoolExecutor(workers, context, _start, (context.Array("q", 3),)) as pool,
        ):
            while first:
                yield from pool.map(function, first, chunksize=_CHUNK)
                first = list(islice(waiting, workers * _CHUNK * 4))
    except BrokenProcessPool as error:
        raise _died() from error


class _Stopped(Exception):
    """Raised in a worker when the build ends early."""


@only_packages()
def run_tasks(tasks: list[Task], workers: int, progress: Progress) -> int:
    """Write all shards that are not finished, and return their number.

    Raises:
        OutputError: a file cannot be written, or a worker died.
    """
    # A fork would copy locks that threads of fsspec may hold.
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", 3)
    if workers == 1 or not tasks:
        _start(counters, in_worker=False)
        return sum([_run(task, progress) for task in tasks])
    workers = min(workers, len(tasks))
    written = 0
    with ProcessPoolExecutor(workers, context, _start, (counters,)) as pool:
        waiting: set[Future[bool]] = {pool.submit(_run, task) for task in tasks}
        try:
            while waiting:  # wakes up twice a second to show progress within long shards
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _show(counters, progress)
                for future in ended:
                    written += future.result()
        except BrokenProcessPool as error:
            raise _died() from error
        finally:
            counters[_STOP] = 1  # workers stop at their next image, not at the end of a shard
            pool.shutdown(wait=True, cancel_futures=True)
    _show(counters, progress)
    return written


def _died() -> OutputError:
    return OutputError(
        "a worker process died, most likely out of memory; use fewer --workers and run the same "
        "command again: finished shards are kept"
    )


def _start(counters: SynchronizedArray[int], in_worker: bool = True) -> None:
    """Prepare a worker: share counters, ignore Ctrl-C, and exit with the parent."""
    global _counters
    _counters = counters
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # its findings go to rejects.jsonl
    if in_worker:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Task, progress: Progress | None = None) -> bool:
    """Write a shard unless it is finished, and return whether it was written."""
    out = OutputFolder(task.out, task.owner)
    with RowStore(task.store, read_only=True) as store:
        try:
            rows = store.fetch(task.numbers)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise _damaged(task) from error

    def done(rejected: bool) -> None:
        with _counters.get_lock():
            counts: Any = _counters.get_obj()  # without taking the lock again for each
            if counts[_STOP]:
                raise _Stopped
            counts[_DONE] += 1
            counts[_REJECTED] += rejected
        if progress is not None:
            _show(_counters, progress)

    identities = (stored.identity for stored in rows)
    fingerprint = shard_fingerprint(task.plan, identities, task.options)
    if task.planned and fingerprint != task.planned:
        raise _damaged(task)
    outcome = finished(out, task.plan, fingerprint)
    if outcome is None:
        pictures = [stored.row for stored in rows]
        make_shard(
            out, task.plan, pictures, fingerprint, task.options, done, elsewhere=bool(task.planned)
        )
        return True
    with _counters.get_lock():
        _counters[_DONE] += len(rows)
        _counters[_REJECTED] += len(outcome.problems)
    return False


def _damaged(task: Task) -> DatasetError:
    return DatasetError(
        f"{masked(str(task.store))}: is damaged: its rows are not those of {task.plan.stem}; run "
        "vse-shards plan again"
    )


def _show(counters: SynchronizedArray[int], progress: Progress) -> None:
    rejected = counters[_REJECTED]
    progress.update(counters[_DONE], f"{rejected:,} rejected" if rejected else "")
