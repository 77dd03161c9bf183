"""Builds on many machines: one plans, any number make the shards, one seals.

The bytes of every file are those of `build` on one machine. Makers know nothing of each other: a
shard appears complete under its name or not at all, its record after it, and the same shard made
twice is the same bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from vse_shards import storage
from vse_shards.errors import DatasetError, OutputError, SourceError
from vse_shards.images import ImageOptions
from vse_shards.manifest import FILE_NAME
from vse_shards.masking import masked
from vse_shards.notes import counted, shown
from vse_shards.options import BuildOptions, Summary
from vse_shards.output import PLAN_FOLDER, PLAN_NAME, TEMPORARY, OutputFolder
from vse_shards.plan_folder import (
    Plan,
    PlannedShard,
    folder_of,
    libraries,
    read_plan,
    read_problems,
    read_shards,
    remove_plan,
)
from vse_shards.pool import Task, run_tasks
from vse_shards.progress import Progress, say
from vse_shards.regions import forget_regions
from vse_shards.seal import Made, Reading, conclude
from vse_shards.shard import Outcome, ShardPlan, record_name
from vse_shards.threshold import RejectLimit

_TOGETHER = 16  # pieces of a remote plan that are on the local disk at once
_REQUESTS = 32  # records that are read at once from a remote folder
_PART = re.compile(r"(\d{1,9})/(\d{1,9})")
_MARK = re.compile(r"parts-(\d{1,9})")


@dataclass(frozen=True)
class Part:
    """Part ``number``, from 0, of ``parts`` parts of about as many shards."""

    number: int = 0
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``I/N``.

        Raises:
            SourceError: there is no such part.
        """
        found = _PART.fullmatch(text)
        part = cls(*map(int, found.groups())) if found else None
        if part is None or part.number >= part.parts:
            raise SourceError(
                f"--shards {shown(text)}: is not I/N, part I of N; parts are numbered from 0: "
                "write 0/4, 1/4, 2/4 or 3/4"
            )
        return part

    def of(self, shards: int) -> slice:
        """Return the shards of the part."""
        return slice(shards * self.number // self.parts, shards * (self.number + 1) // self.parts)

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


@dataclass(frozen=True)
class MadePart:
    """Shards of a part, and those of them that this call wrote; the others were finished before."""

    shards: int
    written: int
    sealed: bool = False


def make(out: str, part: Part, workers: int) -> MadePart:
    """Make the shards of one part of a plan that are not finished.

    Args:
        out: folder or URL of the dataset.
        part: part of the plan.
        workers: number of processes.

    Raises:
        DatasetError: there is no plan, or it is damaged.
        OutputError: the folder cannot be written, or has another plan since.
        StorageError: a storage does not answer, or a file is not on this machine.
    """
    storage.forget_listings()
    forget_regions()
    folder = OutputFolder(out)
    plan = _plan_of(folder)
    if plan is None:
        return MadePart(0, 0, sealed=True)
    _check_libraries(plan)
    folder.owner = plan.id
    with folder.opened(shared=True, tidy=False):
        try:
            at, shards = folder_of(folder), read_shards(folder, plan)
            # For the message of a seal that finds shards missing.
            if part.parts > 1 and folder.is_owned():
                at.write(f"parts-{part.parts}", b"")
            own = shards[part.of(len(shards))]
            say(f"part {part}: {counted(len(own), 'shard')} of {len(shards):,}")
            return MadePart(len(own), _make(folder, plan, own, workers))
        except (DatasetError, OutputError, FileNotFoundError, sqlite3.Error) as error:
            if not folder.is_owned() and _is_sealed(folder):  # by others, who made the rest
                return MadePart(0, 0, sealed=True)
            if isinstance(error, FileNotFoundError | sqlite3.Error):
                raise DatasetError(
                    f"{masked(at.path)}: cannot be read: {error}; run vse-shards plan again"
                ) from None
            raise


def count_shards(out: str) -> int:
    """Return the number of shards that are planned, 0 if the dataset is sealed.

    Raises:
        DatasetError: there is no plan, or it is damaged.
    """
    folder = OutputFolder(out)
    plan = _plan_of(folder)
    return 0 if plan is None else len(read_shards(folder, plan))


def _make(folder: OutputFolder, plan: Plan, shards: list[PlannedShard], workers: int) -> int:
    """Make shards, and return the number of those that were not finished."""
    written = 0
    if storage.lives_in_memory(folder.path):
        workers = 1  # others would each see a memory:// folder of their own
    while shards:
        names = list(dict.fromkeys(shard.piece for shard in shards))
        if folder.remote:
            names = names[:_TOGETHER]
        count = sum(1 for shard in shards if shard.piece in names)
        with _local_pieces(folder_of(folder), names) as pieces:
            tasks = [_task(folder, plan, shard, pieces / shard.piece) for shard in shards[:count]]
            rows = sum(shard.rows for shard in shards[:count])
            with Progress("building", rows, "images") as progress:
                written += run_tasks(tasks, workers, progress)
        shards = shards[count:]
    return written


def _task(folder: OutputFolder, plan: Plan, shard: PlannedShard, piece: Path) -> Task:
    return Task(
        split=shard.split,
        plan=ShardPlan(shard.stem, shard.first_key),
        numbers=np.arange(shard.first, shard.first + shard.rows),
        out=folder.path,
        store=piece,
        options=ImageOptions.of(plan.build),
        owner=plan.id,
        planned=shard.fingerprint,
    )


@contextmanager
def _local_pieces(folder: OutputFolder, names: list[str]) -> Iterator[Path]:
    """Yield a folder of this machine that has these pieces."""
    if not folder.remote:
        yield Path(folder.path)
        return
    with tempfile.TemporaryDirectory() as here:
        for name in names:
            with (
                storage.open_binary(f"{folder.path}/{name}") as source,
                open(Path(here) / name, "wb") as target,
            ):
                shutil.copyfileobj(source, target)
        yield Path(here)


def seal(
    out: str, limit: RejectLimit | None = None, *, allow_leaks: bool = False
) -> Summary | None:
    """Make a dataset of the shards of a plan, which is removed.

    Args:
        out: folder or URL of the dataset.
        limit: rejected rows that are accepted; None: those of the plan.
        allow_leaks: accept images that are in two splits, whatever the plan says.

    Returns:
        The summary of a build; None if the dataset was sealed before.

    Raises:
        DatasetError: there is no plan, or it is damaged.
        SourceError: nothing can be used, too many rows were rejected, or images leak.
        OutputError: shards are missing, or a file cannot be written.
    """
    storage.forget_listings()
    folder = OutputFolder(out)
    plan = _plan_of(folder)
    if plan is None:
        _remove_rest(folder)
        return None
    folder.owner = plan.id
    with folder.opened(tidy=False):
        if not folder.is_owned() and _is_sealed(folder):  # killed before the plan was removed
            remove_plan(folder)
            folder.remove_temporary()
            return None
        shares = plan.options
        options = BuildOptions(
            max_rejects=limit or RejectLimit(*shares["max_rejects"]),
            allow_missing=shares["allow_missing"],
            allow_leaks=allow_leaks or shares["allow_leaks"],
        )
        reading = Reading(plan.name, plan.read, read_problems(folder, plan))
        recorded = {"build": plan.build, "source": plan.source}
        made = _made(folder, read_shards(folder, plan))
        summary = conclude(folder, reading, made, recorded, options)
        folder.remove_temporary()  # of makers that were killed; none has anything left to do
    return replace(summary, notes=plan.notes)


def _remove_rest(folder: OutputFolder) -> None:
    """Remove what a seal that was killed left of a plan, unless another plan is being written."""
    if folder.read(PLAN_NAME) is not None:  # which a seal removes before the plan
        return
    if folder.remote:
        remove_plan(folder)
    elif any(name == PLAN_FOLDER or name.endswith(TEMPORARY) for name in os.listdir(folder.path)):
        with folder.opened():
            remove_plan(folder)


def _made(folder: OutputFolder, shards: list[PlannedShard]) -> Iterator[Made]:
    """Yield all shards of a plan.

    Raises:
        OutputError: some are not finished; said after the last, so that it names all parts.
    """
    missing = []
    if folder.remote:  # one listing, which the threads then share
        storage.file_size(f"{folder.path}/{FILE_NAME}")
    with (
        ThreadPoolExecutor(_REQUESTS) as pool,
        Progress("sealing", len(shards), "shards") as progress,
    ):
        waiting, done = iter(shards), 0
        while together := list(islice(waiting, _REQUESTS)):
            outcomes = (pool.map if folder.remote else map)(partial(_finished, folder), together)
            for shard, outcome in zip(together, outcomes, strict=True):
                done += 1
                progress.update(done)
                if outcome is None:
                    missing.append(done - 1)
                elif not missing:
                    yield shard.split, shard.stem, outcome
    if missing:
        raise OutputError(_missing(folder, shards, missing))


def _finished(folder: OutputFolder, shard: PlannedShard) -> Outcome | None:
    """Return the outcome of a shard of a plan; None if it is of another, or a file is not whole."""
    text = folder.read(record_name(shard.stem))
    if text is None:
        return None
    try:
        outcome = Outcome.loads(text)
    except (KeyError, TypeError, ValueError):
        return None
    if outcome.fingerprint != shard.fingerprint:
        return None
    record = outcome.shard
    if record is not None and (
        storage.file_size(f"{folder.path}/{record.name}") != record.bytes
        or storage.file_size(f"{folder.path}/{record.index_name}") < 0
    ):
        return None
    return outcome


def _missing(folder: OutputFolder, shards: list[PlannedShard], missing: list[int]) -> str:
    """Return the line about shards that are not finished, with the command that makes them."""
    path = masked(folder.path)
    names = folder_of(folder).names()
    parts = max((int(found[1]) for found in map(_MARK.fullmatch, names) if found), default=1)
    line = (
        f"{path}: {len(missing):,} of {counted(len(shards), 'shard')} are not made, the first is "
        f"{shards[missing[0]].stem}; "
    )
    # The part of a shard is the inverse of `Part.of`.
    lacking = sorted({(one * parts + parts - 1) // len(shards) for one in missing})
    first = f" --shards {Part(lacking[0], parts)}" if parts > 1 else ""
    more = f" (and so on: the parts are {_ranges(lacking)})" if len(lacking) > 1 else ""
    return f"{line}run vse-shards make {path}{first}{more}, then vse-shards seal {path} again"


def _ranges(numbers: list[int], most: int = 10) -> str:
    """Return ascending numbers as a SLURM array has them, such as 0,4-7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ",".join(texts[:most]) + (" ..." if len(texts) > most else "")


def _plan_of(folder: OutputFolder) -> Plan | None:
    """Return the plan of a dataset; None if it is sealed.

    Raises:
        DatasetError: there is neither plan nor dataset, or the plan is damaged.
    """
    plan = read_plan(folder)
    if plan is None and not _is_sealed(folder):
        raise DatasetError(
            f"{masked(folder.path)}: has no plan; make one with vse-shards plan, or build the "
            "dataset on this machine with vse-shards build"
        )
    return plan


def _is_sealed(folder: OutputFolder) -> bool:
    return folder.read(FILE_NAME) is not None


def _check_libraries(plan: Plan) -> None:
    """Refuse to make shards with other libraries than the plan names.

    Raises:
        DatasetError: a version differs.
    """
    here = libraries()
    for name, wanted in plan.libraries.items():
        found = here.get(name, "")
        if found != wanted:
            mend = f"install {name}=={wanted}" if wanted else f"uninstall {name}"
            raise DatasetError(
                f"this machine has {name} {found or '(not installed)'}, and the plan was made with "
                f"{wanted or 'none'}: pictures could be stored as other bytes; run here pip "
                f"{mend}, or run vse-shards plan again on a machine like this one"
            )
