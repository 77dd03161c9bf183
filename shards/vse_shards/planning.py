"""Planning of a build on many machines: the rows of a source in the order of the shards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import numpy as np

from vse_shards import storage
from vse_shards.build import opened_store, plan, read_source, recorded_source
from vse_shards.claim import claim, refuse_foreign
from vse_shards.errors import DatasetError, OutputError
from vse_shards.masking import masked
from vse_shards.notes import counted
from vse_shards.options import BuildOptions
from vse_shards.output import OutputFolder
from vse_shards.plan_folder import (
    KEPT,
    PIECE_ROWS,
    PROBLEMS,
    SHARDS,
    Plan,
    PlannedShard,
    accepted,
    folder_of,
    libraries,
    plan_id,
    read_plan,
    read_shards,
    remove_plan,
    write_lines,
    write_piece,
    write_plan,
)
from vse_shards.pool import Task
from vse_shards.progress import Progress, say
from vse_shards.replacing import mention_leftover, put_back
from vse_shards.rows import RowStore
from vse_shards.shard import record_name, shard_fingerprint
from vse_shards.sources import Source
from vse_shards.sources.spool import kept_name

Columns = tuple[str, str | None, str | None]


def make_plan(source: Source, out: str, options: BuildOptions) -> tuple[Plan, int]:
    """Read a source, and write the plan of its dataset; return it and its number of shards.

    All that `build` decides before it reads a picture is decided here, in the same way: splits,
    ids, order, the borders and names of shards. Memory grows by 32 bytes a row.

    Args:
        source: rows to read.
        out: folder or URL of the dataset.
        options: options of the build; the number of workers is of this call alone.

    Raises:
        SourceError: the source is empty or unusable as a whole, or too many rows were rejected.
        OutputError: the folder cannot be written, or contains other files.
        OSError: a storage does not answer.
    """
    folder = OutputFolder(out)
    if not folder.remote:
        put_back(out)
        mention_leftover(out)
    with opened_store(folder, tidy=False) as (store, store_path):
        refuse_foreign(folder)
        notes = read_source(source, store, options)
        recorded = {"build": options.recorded(), "source": recorded_source(source, store)}
        owner = plan_id(recorded)
        claim(folder, recorded, overwrite=False, owner=owner)
        _forget_shards_of_others(folder)
        remove_plan(folder)
        at = folder_of(folder)
        if not at.remote:
            os.makedirs(at.path, exist_ok=True)
        tasks = list(plan(store, folder, store_path, options))
        made = Plan(
            id=owner,
            name=source.name,
            read=store.read,
            **recorded,
            options=accepted(options),
            libraries=libraries(),
            notes=notes,
            lists={
                SHARDS: _write_shards(at, store, tasks),
                PROBLEMS: write_lines(at, PROBLEMS, store.problems()),
            },
        )
        write_plan(at, made)
    return made, len(tasks)


def _forget_shards_of_others(folder: OutputFolder) -> None:
    """Remove the records of what an earlier plan's machines made with other libraries.

    Their bytes may be others than those of this plan's machines.
    """
    with contextlib.suppress(DatasetError):  # a damaged plan, of which nothing was sealed
        before = read_plan(folder)
        if before is not None and before.libraries != libraries():
            for shard in read_shards(folder, before):
                folder.remove(record_name(shard.stem))


def _write_shards(at: OutputFolder, store: RowStore, tasks: list[Task]) -> str:
    """Write pieces, the pictures that they need and the list of shards; return its digest.

    Raises:
        OutputError: there is no room.
    """
    order = np.concatenate([task.numbers for task in tasks])
    places = np.empty(int(order.max()) + 1, np.int64)
    places[order] = np.arange(len(order))
    total = len(order)
    del order
    kept = _Kept(at)
    try:
        with Progress("planning", total, "rows") as progress:
            shards = _shards(at, store.in_order(places), tasks, kept, progress)
            digest = write_lines(at, SHARDS, (json.dumps(asdict(one)) + "\n" for one in shards))
    except sqlite3.Error as error:
        raise OutputError(
            f"{masked(at.path)}: cannot be written: {error}; make room there and in "
            f"{tempfile.gettempdir()} (TMPDIR), then run the same command again"
        ) from error
    kept.copy()
    return digest


def _shards(
    at: OutputFolder,
    rows: Iterator[Columns],
    tasks: list[Task],
    kept: _Kept,
    progress: Progress,
) -> Iterator[PlannedShard]:
    """Write the rows in pieces, and yield the shards of each."""
    done = 0
    for number, group in enumerate(_groups(tasks)):
        name = f"rows-{number:05d}.sqlite"
        shards: list[PlannedShard] = []
        write_piece(at, name, _piece(rows, group, name, shards, kept))
        yield from shards
        done += sum(shard.rows for shard in shards)
        progress.update(done)


def _groups(tasks: list[Task]) -> Iterator[list[Task]]:
    """Yield the shards of each piece."""
    group: list[Task] = []
    rows = 0
    for task in tasks:
        group.append(task)
        rows += len(task.numbers)
        if rows >= PIECE_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _piece(
    rows: Iterator[Columns],
    tasks: list[Task],
    name: str,
    shards: list[PlannedShard],
    kept: _Kept,
) -> Iterator[Columns]:
    """Yield the rows of a piece, and add its shards to ``shards``."""
    first = 0
    for task in tasks:
        own = list(islice(rows, len(task.numbers)))
        shards.append(
            PlannedShard(
                split=task.split,
                stem=task.plan.stem,
                first_key=task.plan.first_key,
                fingerprint=shard_fingerprint(task.plan, (row[0] for row in own), task.options),
                piece=name,
                first=first,
                rows=len(own),
            )
        )
        first += len(own)
        for body, image, regions in own:
            yield body, kept.moved(image), regions


class _Kept:
    """Pictures of this machine alone, which are copied into the plan.

    Args:
        at: folder of the plan.
    """

    def __init__(self, at: OutputFolder) -> None:
        self._at = at
        self._moved: dict[str, str] = {}

    def moved(self, image: str | None) -> str | None:
        """Return the path of a picture, in the plan if this machine alone has it."""
        name = kept_name(image) if image is not None else None
        if image is None or name is None:
            return image
        return self._moved.setdefault(image, f"{self._at.path}/{KEPT}/{name}")

    def copy(self) -> None:
        """Copy the pictures.

        Raises:
            OutputError: there is no room.
        """
        if not self._moved:
            return
        size = sum(map(os.path.getsize, self._moved))
        say(
            f"pictures that this machine alone has are copied to the plan: "
            f"{counted(len(self._moved), 'file')}, {size / 1e6:,.1f} MB"
        )
        for path, target in self._moved.items():
            folder = OutputFolder(storage.parent(target))
            if not folder.remote:
                os.makedirs(folder.path, exist_ok=True)
            with open(path, "rb") as source, folder.writing(storage.base_name(target)) as file:
                shutil.copyfileobj(source, file)
