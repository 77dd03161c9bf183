"""Building a dataset: plan the shards, make them in parallel, and seal them with a manifest."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from vse_shards import storage
from vse_shards.carve import Settled, carve
from vse_shards.checks import check_rows
from vse_shards.claim import claim, refuse_foreign
from vse_shards.errors import OutputError
from vse_shards.notes import Notes
from vse_shards.options import BuildOptions, Summary
from vse_shards.output import OutputFolder
from vse_shards.pool import Task
from vse_shards.progress import Progress, say
from vse_shards.regions import forget_regions
from vse_shards.replacing import make_aside, mention_leftover, put_back, replacing
from vse_shards.rows import RowStore
from vse_shards.seal import seal
from vse_shards.shard import ShardPlan
from vse_shards.shuffle import shuffle
from vse_shards.sources import Problem, Row, Source

__all__ = ["BuildOptions", "Summary", "build"]


def build(source: Source, out: str, options: BuildOptions) -> Summary:
    """Build a dataset, or resume its build.

    After a kill, the same call resumes with the missing shards. The result is the same to the byte
    for any number of workers. A dataset that is to be replaced stays until the new one is complete.

    Args:
        source: rows to read.
        out: folder or URL to write.
        options: options of the build.

    Raises:
        SourceError: the source is empty or unusable as a whole, or too many rows were rejected.
        OutputError: the folder cannot be written, or contains other files.
        OSError: a storage does not answer.
    """
    if options.overwrite and (aside := make_aside(out)) is not None:
        with replacing(out, aside):
            return _build(source, str(aside), replace(options, overwrite=False))
    if not storage.is_url(out):
        put_back(out)
        mention_leftover(out)
    return _build(source, out, options)


def _build(source: Source, out: str, options: BuildOptions) -> Summary:
    folder = OutputFolder(out)
    with opened_store(folder) as (store, store_path):
        refuse_foreign(folder)
        notes = read_source(source, store, options)
        recorded = {"build": options.recorded(), "source": recorded_source(source, store)}
        claim(folder, recorded, options.overwrite)
        tasks = list(plan(store, folder, store_path, options))
        summary = seal(folder, source.name, store, tasks, recorded, options)
    return replace(summary, notes=notes)


@contextmanager
def opened_store(folder: OutputFolder, *, tidy: bool = True) -> Iterator[tuple[RowStore, Path]]:
    """Lock an output folder and yield a row store in it, with the path of its file.

    Args:
        folder: folder of the dataset.
        tidy: as `OutputFolder.opened` takes it.

    Raises:
        OutputError: the folder or the store cannot be written.
    """
    storage.forget_listings()  # folders and files may have changed since this process's last build
    forget_regions()
    with folder.opened(tidy=tidy), folder.scratch("rows") as path:
        try:
            with RowStore(path) as store:
                yield store, path
        except sqlite3.Error as error:
            raise OutputError(
                f"{path}: cannot be written: {error}; make room, then run the same command "
                "again: finished shards are kept"
            ) from error


def read_source(
    source: Source,
    store: RowStore,
    options: BuildOptions,
    *,
    settled: Settled | None = None,
    may_carve_none: bool = False,
) -> tuple[str, ...]:
    """Read the source into the store, say what its owner must know, and return these lines.

    Args:
        source: source to read.
        store: empty store.
        options: options of the build.
        settled: split by id in the dataset that the rows add to, as `carve` takes it.
        may_carve_none: whether a split to carve out may get no row.

    Raises:
        SourceError: the source yields no dataset.
    """
    say(f"reading {source.name}")
    with Progress("reading", None, "rows") as progress:
        rows = islice(_counted(source, progress), options.limit)
        other_splits = store.fill(
            rows,
            options.splits,
            allow_outside=options.allow_outside,
            prefix_ids=options.prefix_ids,
        )
    said = notes_of(source)
    if store.outside.count:
        said.append(store.outside.line(source.name))
    for line in said:
        say(line)
    check_rows(source, store, other_splits, options)
    more = []
    if options.carvings:
        line = carve(
            store,
            options.carvings,
            source.name,
            settled=settled,
            may_be_empty=may_carve_none,
            workers=options.workers,
        )
        more.append(line)
    more += store.repeats().lines()
    for line in more:
        say(line)
    return (*said, *more)


def recorded_source(source: Source, store: RowStore) -> dict[str, Any]:
    """Return what the manifest lists about a source that was read."""
    return {"kind": source.kind, "rows": store.splits(), "rows_sha256": store.digest()}


def notes_of(source: Source) -> list[str]:
    """Return what a source that was read has to say; one of another package may have no notes."""
    notes: Notes | None = getattr(source, "notes", None)
    return notes.lines(source.name) if notes is not None else []


def _counted(source: Source, progress: Progress) -> Iterator[Row | Problem]:
    for number, row in enumerate(source.rows(), start=1):
        yield row
        progress.update(number)


def plan(
    store: RowStore,
    folder: OutputFolder,
    store_path: Path,
    options: BuildOptions,
    after: dict[str, tuple[int, int]] | None = None,
) -> Iterator[Task]:
    """Shuffle every split and cut it into shards.

    Args:
        store: rows of the dataset.
        folder: folder to write.
        store_path: file of the rows.
        options: options of the build.
        after: number of the next shard, and key of its first sample, of splits that have some.
    """
    for split in sorted(store.splits()):
        # Each split has its own shuffle, so that adding one leaves the shards of others unchanged.
        numbers = store.numbers(split)
        order = numbers[shuffle(len(numbers), options.seed, split)]
        first_shard, first_key = (after or {}).get(split, (0, 0))
        for index, start in enumerate(range(0, len(order), options.shard_samples)):
            yield Task(
                split=split,
                plan=ShardPlan(f"{split}-{first_shard + index:06d}", first_key=first_key + start),
                numbers=order[start : start + options.shard_samples],
                out=folder.path,
                store=store_path,
                options=options.image,
                owner=folder.owner,
            )
