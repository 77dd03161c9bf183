"""Building a dataset: plan the shards, make them in parallel, and seal them with a manifest."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from vse_shards import storage
from vse_shards.duplicates import Digests, Occurrence, find_duplicates
from vse_shards.errors import OutputError, SourceError
from vse_shards.images import ImageOptions
from vse_shards.manifest import FILE_NAME, REJECTS_NAME, Manifest, ShardRecord, Split
from vse_shards.notes import Notes
from vse_shards.output import OutputFolder
from vse_shards.pool import Task, run_tasks
from vse_shards.progress import Progress, say
from vse_shards.rows import RowStore
from vse_shards.shard import Outcome, ShardPlan, record_name
from vse_shards.shuffle import shuffle
from vse_shards.sources import Problem, Row, Source

PLAN_NAME = ".build.json"  # options and source of an unfinished build
DUPLICATES_NAME = "duplicates.jsonl"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_OURS = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_-]*-\d{6}\.(tar|idx|json)|manifest\.json|rejects\.jsonl|"
    r"duplicates\.jsonl|\.build\.json"
)


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        image: conversion of images.
        shard_samples: rows per shard; rejected rows leave it smaller.
        seed: seed of the shuffle.
        splits: new name of each selected split of the source; None selects all, under their names.
        workers: number of processes.
        allow_missing: reject rows whose image does not exist, instead of refusing to build.
        allow_outside: read images outside the folder of the images, if a row names them.
        allow_leaks: build even if an image is in two splits.
        overwrite: replace a dataset that was built from other rows or with other options.
    """

    image: ImageOptions = field(default_factory=ImageOptions)
    shard_samples: int = 1000
    seed: int = 0
    splits: dict[str, str] | None = None
    workers: int = 1
    allow_missing: bool = False
    allow_leaks: bool = False
    allow_outside: bool = False
    overwrite: bool = False

    def recorded(self) -> dict[str, Any]:
        """Return the options that determine the files, as the manifest lists them."""
        return {
            **asdict(self.image),
            "shard_samples": self.shard_samples,
            "seed": self.seed,
            "splits": self.splits,
        }


@dataclass(frozen=True)
class Summary:
    """Result of a build: the manifest, counts of everything stored and rejected, the notes."""

    manifest: Manifest
    images: int
    pairs: int
    bytes: int
    untouched: int
    rejects: dict[str, int]
    duplicates: int
    seconds: float
    notes: tuple[str, ...] = ()


def build(source: Source, out: str, options: BuildOptions) -> Summary:
    """Build a dataset, or resume its build.

    After a kill, the same call resumes with the missing shards. The result is the same to the byte
    for any number of workers.

    Args:
        source: rows to read.
        out: folder or URL to write.
        options: options of the build.

    Raises:
        SourceError: the source is empty or unusable as a whole.
        OutputError: the folder cannot be written, or contains other files.
    """
    folder = OutputFolder(out)
    storage.forget_listings()  # remote folders may have changed since this process's last build
    with folder.opened(), folder.scratch("rows") as store_path:
        _refuse_foreign(folder)
        try:
            with RowStore(store_path) as store:
                _read(source, store, options)
                recorded = {
                    "build": options.recorded(),
                    "source": {
                        "kind": source.kind,
                        "rows": store.splits(),
                        "rows_sha256": store.digest(),
                    },
                }
                _claim(folder, recorded, options.overwrite)
                tasks = list(_plan(store, folder, store_path, options))
                summary = _seal(folder, store, tasks, recorded, options)
                return replace(summary, notes=tuple(notes_of(source)))
        except sqlite3.Error as error:
            raise OutputError(
                f"{store_path}: cannot be written: {error}; make room, then run the same command "
                "again: finished shards are kept"
            ) from error


def _read(source: Source, store: RowStore, options: BuildOptions) -> None:
    """Read the source into the store, and refuse a source that yields no dataset."""
    say(f"reading {source.name}")
    with Progress("reading", None, "rows") as progress:
        other_splits = store.fill(
            _counted(source, progress), options.splits, allow_outside=options.allow_outside
        )
    for line in notes_of(source):
        say(line)
    if store.outside.count:
        say(store.outside.line(source.name))
    _check_rows(source, store, other_splits, options)


def notes_of(source: Source) -> list[str]:
    """Return what a source that was read has to say; one of another package may have no notes."""
    notes: Notes | None = getattr(source, "notes", None)
    return notes.lines(source.name) if notes is not None else []


def _counted(source: Source, progress: Progress) -> Iterator[Row | Problem]:
    for number, row in enumerate(source.rows(), start=1):
        yield row
        progress.update(number)


def _check_rows(
    source: Source, store: RowStore, other_splits: dict[str, int], options: BuildOptions
) -> None:
    splits = store.splits()
    if not options.allow_missing:
        _check_missing(source, store, sum(splits.values()))
    if not splits:
        raise _no_rows(source, store, other_splits)
    _check_names(source, splits, other_splits, options)
    leaks, first_leaks = store.in_several_splits()
    if leaks and not options.allow_leaks:
        raise SourceError(
            f"{source.name}: {leaks:,} images are in more than one split: "
            f"{', '.join(first_leaks)}{' ...' if leaks > 3 else ''}; correct the source, or pass "
            "--allow-leaks"
        )


def _check_missing(source: Source, store: RowStore, images: int) -> None:
    missing = store.missing()
    if missing.count:
        raise SourceError(
            f"{source.name}: {missing.count:,} of {missing.count + images:,} images are missing: "
            f"{', '.join(missing.first)}{' ...' if missing.count > 3 else ''}; correct --images, "
            "or reject them with --allow-missing"
        )


def _no_rows(source: Source, store: RowStore, other_splits: dict[str, int]) -> SourceError:
    problem = next(iter(store.problems()), None)
    if problem is not None:
        first = json.loads(problem)
        return SourceError(
            f"{source.name}: none of its rows can be used; the first: {first['source']}: "
            f"{first['reason']}: {first['detail']}"
        )
    other = ", ".join(other_splits)
    return SourceError(
        f"{source.name}: has no rows of the requested splits; it has {other}"
        if other
        else f"{source.name}: is empty; there is nothing to build"
    )


def _check_names(
    source: Source, splits: dict[str, int], other_splits: dict[str, int], options: BuildOptions
) -> None:
    for name in splits:
        if not _SPLIT_NAME.fullmatch(name):
            raise SourceError(
                f"{source.name}: split {name!r} cannot be part of a file name; rename it with "
                "--split NAME=SPLIT"
            )
    if options.splits is not None:
        absent = sorted(set(options.splits.values()) - set(splits))
        if absent:
            raise SourceError(
                f"{source.name}: has no rows for split {absent[0]!r}; it has other rows of "
                f"{', '.join(other_splits) or 'no other split'}"
            )


def _refuse_foreign(folder: OutputFolder) -> None:
    """Refuse a folder that contains files of anything but a dataset.

    Raises:
        OutputError: it contains such a file.
    """
    foreign = [name for name in folder.names() if not _OURS.fullmatch(name)]
    if foreign:
        raise OutputError(
            f"{folder.path}: contains other files ({foreign[0]}); choose an empty or new folder"
        )


def _claim(folder: OutputFolder, recorded: dict[str, Any], overwrite: bool) -> None:
    """Claim the folder for this build, unless it contains another dataset.

    Raises:
        OutputError: the folder's dataset was built from other rows, or with other options.
    """
    earlier = folder.read(FILE_NAME) or folder.read(PLAN_NAME)
    difference = _difference(earlier, recorded)
    if difference and not overwrite:
        raise OutputError(
            f"{folder.path}: contains a dataset of another build ({difference}); choose another "
            "folder, or replace it with --overwrite"
        )
    if overwrite:
        for name in folder.names():
            folder.remove(name)
    # Before any shard: an interrupted build must not resume with other options.
    if overwrite or folder.read(FILE_NAME) is None:
        folder.write(PLAN_NAME, json.dumps(recorded, sort_keys=True).encode())


def _difference(earlier: bytes | None, recorded: dict[str, Any]) -> str:
    """Return the first difference from an earlier build in the folder, "" if there is none."""
    if earlier is None:
        return ""
    try:
        content = json.loads(earlier)
        for section, values in recorded.items():
            for key, value in values.items():
                if content[section].get(key) != value:
                    return f"{section} {key} was {content[section].get(key)}, now {value}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return ""


def _plan(
    store: RowStore, folder: OutputFolder, store_path: Path, options: BuildOptions
) -> Iterator[Task]:
    """Shuffle every split and cut it into shards."""
    for split in sorted(store.splits()):
        # Each split has its own shuffle, so that adding one leaves the shards of others unchanged.
        numbers = store.numbers(split)
        order = numbers[shuffle(len(numbers), options.seed, split)]
        for index, start in enumerate(range(0, len(order), options.shard_samples)):
            yield Task(
                split=split,
                plan=ShardPlan(f"{split}-{index:06d}", first_key=start),
                numbers=order[start : start + options.shard_samples],
                out=folder.path,
                store=store_path,
                options=options.image,
            )


def _seal(
    folder: OutputFolder,
    store: RowStore,
    tasks: list[Task],
    recorded: dict[str, Any],
    options: BuildOptions,
) -> Summary:
    """Write all shards, find duplicates, and write rejects and manifest."""
    rows = sum(len(task.numbers) for task in tasks)
    # Worker processes would each see a memory:// folder of their own.
    workers = 1 if storage.lives_in_memory(folder.path) else options.workers
    say(f"building {rows:,} images in {len(tasks)} shards with {workers} workers")
    with Progress("building", rows, "images") as progress:
        run_tasks(tasks, workers, progress)
    digests = Digests()
    shards: dict[str, list[ShardRecord]] = {}
    untouched = 0
    with folder.writing(REJECTS_NAME) as file:
        rejects = _Rejects(file)
        rejects.add(store.problems())
        for task in tasks:  # in order: the manifest must not depend on which worker was faster
            outcome = Outcome.loads(folder.read(record_name(task.plan.stem)) or b"")
            rejects.add(outcome.problems)
            untouched += outcome.untouched
            if outcome.shard is not None:
                shards.setdefault(task.split, []).append(outcome.shard)
                digests.add(task.split, task.plan.stem, outcome.digests)
    if not shards:
        raise SourceError(
            f"{folder.path}: all {rows:,} images were rejected ({rejects.text()}); "
            f"{REJECTS_NAME} says why"
        )
    duplicates = _report_duplicates(folder, digests, options.allow_leaks)
    manifest = Manifest(
        splits={name: Split(tuple(records)) for name, records in shards.items()},
        rejects=rejects.reasons.total(),
        rejects_sha256=rejects.digest.hexdigest(),
        build=recorded["build"],
        source=recorded["source"],
    )
    # Last: a folder without a manifest is not a dataset.
    folder.write(FILE_NAME, manifest.dumps().encode())
    folder.remove(PLAN_NAME)
    return Summary(
        manifest=manifest,
        images=sum(split.images for split in manifest.splits.values()),
        pairs=sum(split.pairs for split in manifest.splits.values()),
        bytes=sum(record.bytes for records in shards.values() for record in records),
        untouched=untouched,
        rejects=dict(rejects.reasons),
        duplicates=duplicates,
        seconds=progress.seconds,
    )


def _report_duplicates(folder: OutputFolder, digests: Digests, allow_leaks: bool) -> int:
    """List the sets of equal images beside the shards; refuse a set that spans two splits."""
    found = find_duplicates(folder, digests)
    folder.remove(DUPLICATES_NAME)
    if found:
        text = "".join(json.dumps([asdict(place) for place in same]) + "\n" for same in found)
        folder.write(DUPLICATES_NAME, text.encode())
    leaks = [same for same in found if len({place.split for place in same}) > 1]
    if leaks and not allow_leaks:
        raise SourceError(
            f"{len(leaks):,} images are in more than one split, pixel for pixel: "
            f"{'; '.join(map(_equation, leaks[:3]))}; {folder.path}/{DUPLICATES_NAME} lists them; "
            "take them out of the source, or pass --allow-leaks"
        )
    return len(found)


def _equation(same: list[Occurrence]) -> str:
    return " = ".join(f"{place.image_id} ({place.split})" for place in same[:3])


class _Rejects:
    """Writes the lines of ``rejects.jsonl`` and counts their reasons."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.reasons: Counter[str] = Counter()

    def add(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._file.write(line.encode())
            self.digest.update(line.encode())
            self.reasons[json.loads(line)["reason"]] += 1

    def text(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
