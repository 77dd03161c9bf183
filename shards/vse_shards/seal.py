"""The end of a build: shards, duplicates, rejects, and the manifest that makes them a dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vse_shards import storage
from vse_shards.card import write_card
from vse_shards.claim import remove_strays
from vse_shards.duplicates import Digests, Occurrence, find_duplicates
from vse_shards.errors import OutputError, SourceError
from vse_shards.manifest import FILE_NAME, REJECTS_NAME, Manifest, ShardRecord, Split
from vse_shards.masking import masked
from vse_shards.notes import counted, shown
from vse_shards.options import BuildOptions, Summary
from vse_shards.output import PLAN_NAME, OutputFolder
from vse_shards.plan_folder import remove_plan
from vse_shards.pool import Task, run_tasks
from vse_shards.progress import Progress, say
from vse_shards.rows import RowStore
from vse_shards.shard import Outcome, read_outcome, record_name
from vse_shards.table import table_name
from vse_shards.tabulate import in_columns, remove_columns, wants_columns
from vse_shards.threshold import Rejects

DUPLICATES_NAME = "duplicates.jsonl"


@dataclass
class Gathered:
    """Shards of a dataset in the making.

    Attributes:
        shards: shards of each split, in order.
        digests: digests of all images.
        untouched: number of images stored byte for byte.
        changes: number of images by what was cut, mended or assumed.
        files: names of all their files.
    """

    shards: dict[str, list[ShardRecord]] = field(default_factory=dict)
    digests: Digests = field(default_factory=Digests)
    untouched: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    files: set[str] = field(default_factory=set)

    def manifest(self, rejects: Rejects, build: dict[str, Any], source: dict[str, Any]) -> Manifest:
        """Return the manifest of the shards, with what it records of their build and source."""
        return Manifest(
            splits={name: Split(tuple(records)) for name, records in self.shards.items()},
            rejects=rejects.lines,
            rejects_sha256=rejects.digest.hexdigest(),
            build=build,
            source=source,
        )

    def summary(self, manifest: Manifest) -> Summary:
        """Return what can be told from the shards alone."""
        splits = manifest.splits.values()
        return Summary(
            manifest=manifest,
            images=sum(split.images for split in splits),
            pairs=sum(split.pairs for split in splits),
            bytes=sum(shard.bytes for split in splits for shard in split.shards),
            untouched=self.untouched,
            changes=dict(self.changes),
            rejects={},
            duplicates=0,
            seconds=0.0,
        )

    def add(self, split: str, stem: str, outcome: Outcome) -> None:
        """Add the outcome of one shard."""
        self.files.add(record_name(stem))
        self.untouched += outcome.untouched
        self.changes.update(outcome.changes)
        if outcome.shard is not None:
            self.shards.setdefault(split, []).append(outcome.shard)
            self.digests.add(split, stem, outcome.digests)
            self.files |= {outcome.shard.name, outcome.shard.index_name}


@dataclass(frozen=True)
class Reading:
    """A source that was read.

    Attributes:
        name: name of the source.
        rows: number of rows and problems.
        problems: lines of ``rejects.jsonl``.
    """

    name: str
    rows: int
    problems: Iterable[str]


# Split and stem of a shard, with its outcome.
Made = tuple[str, str, Outcome]


def seal(
    folder: OutputFolder,
    name: str,
    store: RowStore,
    tasks: list[Task],
    recorded: dict[str, Any],
    options: BuildOptions,
    earlier: Manifest | None = None,
) -> Summary:
    """Write all shards, find duplicates, and write rejects and manifest.

    Args:
        folder: folder of the dataset.
        name: name of the source.
        store: rows of the source.
        tasks: shards to write.
        recorded: sections ``build`` and ``source`` of the manifest.
        options: options of the build.
        earlier: the dataset that is added to; its shards come first in their splits.

    Raises:
        SourceError: nothing can be used, too many rows were rejected, or images leak.
        OutputError: a file cannot be written.
    """
    rows = sum(len(task.numbers) for task in tasks)
    # Worker processes would each see a memory:// folder of their own.
    workers = 1 if storage.lives_in_memory(folder.path) else options.workers
    say(
        f"building {counted(rows, 'image')} in {counted(len(tasks), 'shard')} with "
        f"{counted(workers, 'worker')}"
    )
    with Progress("building", rows, "images") as progress:
        built = run_tasks(tasks, workers, progress)
    # In order: the manifest must not depend on which worker was faster.
    made = ((t.split, t.plan.stem, read_outcome(folder.path, t.plan.stem)) for t in tasks)
    reading = Reading(name, store.read, store.problems())
    summary = conclude(folder, reading, made, recorded, options, earlier)
    return replace(summary, seconds=progress.seconds, built=built)


def conclude(
    folder: OutputFolder,
    reading: Reading,
    made: Iterable[Made],
    recorded: dict[str, Any],
    options: BuildOptions,
    earlier: Manifest | None = None,
) -> Summary:
    """Find duplicates, and write rejects and manifest.

    Args:
        folder: folder of the dataset, with all its shards.
        reading: source of the shards.
        made: the shards in their order.
        recorded: sections ``build`` and ``source`` of the manifest.
        options: options of the build.
        earlier: the dataset that is added to; its shards come first in their splits.

    Raises:
        SourceError: nothing can be used, too many rows were rejected, or images leak.
        OutputError: a file cannot be written.
    """
    gathered = _earlier_shards(folder, earlier)
    old_rejects = _old_rejects(folder, earlier)
    rejects, tars = _collect(folder, reading, made, gathered, old_rejects)
    try:
        rejects.check(reading.name, options.max_rejects, reading.rows, options.accepted())
        duplicates = report_duplicates(folder, gathered.digests, options.allow_leaks)
    except SourceError:
        if earlier is not None:  # whose manifest knows its own rejects alone
            folder.write(REJECTS_NAME, "".join(old_rejects).encode())
        raise
    if earlier is not None and rejects.lines == earlier.rejects and not tars:
        recorded = {"build": earlier.build, "source": earlier.source}  # nothing was added
    manifest = gathered.manifest(rejects, recorded["build"], recorded["source"])
    changed = finish(folder, gathered, manifest)
    return replace(
        gathered.summary(manifest),
        rejects=dict(rejects.reasons),
        duplicates=duplicates,
        changed=changed,
    )


def _collect(
    folder: OutputFolder,
    reading: Reading,
    made: Iterable[Made],
    gathered: Gathered,
    old_rejects: list[str],
) -> tuple[Rejects, int]:
    """Add the outcomes of all shards to the gathered, and write the rejects.

    Returns:
        The rejects, and the number of shards that have a sample.

    Raises:
        SourceError: all images were rejected.
    """
    rejected = tars = 0
    known = set(old_rejects)  # of rows that were read again
    with folder.writing(REJECTS_NAME) as file:
        rejects = Rejects(file)
        rejects.keep(old_rejects)
        rejects.add(line for line in reading.problems if line not in known)
        for split, stem, outcome in made:
            rejects.add(line for line in outcome.problems if line not in known)
            gathered.add(split, stem, outcome)
            rejected += len(outcome.problems)
            tars += outcome.shard is not None
    if not gathered.shards:
        raise SourceError(
            f"{folder.path}: "
            f"{f'all {rejected:,} images were' if rejected > 1 else 'the only image was'} "
            f"rejected ({rejects.text()}); "
            f"{REJECTS_NAME} says why"
        )
    return rejects, tars


def _check_sizes(folder: OutputFolder, manifest: Manifest) -> None:
    """Refuse to seal shards of another build, whose last upload came after ours.

    Raises:
        OutputError: a shard has another size.
    """
    storage.forget_listings()
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        size = storage.file_size(f"{folder.path}/{shard.name}")
        if size != shard.bytes:
            raise OutputError(
                f"{masked(folder.path)}/{shard.name}: has {size:,} bytes, and {shard.bytes:,} were "
                "written; another build writes to this folder: wait for it, then run the same "
                "command again"
            )


def finish(
    folder: OutputFolder, gathered: Gathered, manifest: Manifest, *, columns: bool = False
) -> bool:
    """Remove what is not of the dataset, write card and manifest; return whether that changed.

    Args:
        folder: folder of the dataset.
        gathered: its shards.
        manifest: the manifest of these, of version 1.
        columns: write version 2; without it, where `wants_columns` says so.
    """
    if folder.owner:
        _check_sizes(folder, manifest)
    files = set(gathered.files)
    if columns or wants_columns(folder, manifest):
        manifest = in_columns(folder, manifest)
        files |= {table_name(s.stem) for split in gathered.shards.values() for s in split}
    text = manifest.dumps().encode()
    replaced = folder.read(FILE_NAME)
    remove_strays(folder, files)
    write_card(folder, manifest)
    # Last: a folder without a manifest is not a dataset.
    folder.write(FILE_NAME, text)
    remove_columns(folder, manifest, replaced if manifest.in_columns else None)
    folder.remove(PLAN_NAME)
    remove_plan(folder)
    return replaced != text


def report_duplicates(folder: OutputFolder, digests: Digests, allow_leaks: bool) -> int:
    """List the sets of equal images beside the shards; refuse a set that spans two splits.

    Raises:
        SourceError: a set spans two splits.
    """
    found = find_duplicates(folder, digests)
    folder.remove(DUPLICATES_NAME)
    if found:
        text = "".join(json.dumps([asdict(place) for place in same]) + "\n" for same in found)
        folder.write(DUPLICATES_NAME, text.encode())
    leaks = [same for same in found if len({place.split for place in same}) > 1]
    if leaks and not allow_leaks:
        raise SourceError(
            f"{len(leaks):,} image{'s are' if len(leaks) > 1 else ' is'} in more than one split, "
            f"pixel for pixel: {'; '.join(map(_equation, leaks[:3]))}; "
            f"{folder.path}/{DUPLICATES_NAME} lists them; "
            "take them out of the source, or pass --allow-leaks"
        )
    return len(found)


def _equation(same: list[Occurrence]) -> str:
    return " = ".join(f"{shown(str(place.image_id))} ({place.split})" for place in same[:3])


def _earlier_shards(folder: OutputFolder, earlier: Manifest | None) -> Gathered:
    gathered = Gathered()
    for split, content in earlier.splits.items() if earlier is not None else ():
        for shard in content.shards:
            stem = shard.name.removesuffix(".tar")
            gathered.add(split, stem, read_outcome(folder.path, stem))
    return gathered


def _old_rejects(folder: OutputFolder, earlier: Manifest | None) -> list[str]:
    """Return the rejects of the dataset that is added to; a killed append may have left more."""
    if earlier is None:
        return []
    data = folder.read(REJECTS_NAME) or b""
    return earlier.reject_lines(data, f"{folder.path}/{REJECTS_NAME}")
