"""Plan of a dataset that several machines build: the folder ``.plan`` beside its shards.

plan.json: format, version and id of the plan; what the manifest lists of source and options; the
    rejects that are accepted; versions of the libraries that decode and encode. Written last.
shards.jsonl: an object for each shard in order: split, stem, key of the first row, fingerprint,
    piece and number of its first row in it, rows.
rows-00000.sqlite and so on: pieces of about `PIECE_ROWS` rows, whole shards in order, as table
    ``rows`` (number, body, image, regions) of SQLite, in which `RowStore` reads them.
problems.jsonl: rejects of the source.
kept/: pictures that the planning machine alone had, such as those out of the cells of a table.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vse_shards import recorded, storage
from vse_shards.errors import DatasetError
from vse_shards.json_text import parse_json
from vse_shards.masking import masked
from vse_shards.options import BuildOptions
from vse_shards.output import PLAN_FOLDER, OutputFolder, remove_folder
from vse_shards.shard import FORMAT_VERSION

PIECE_ROWS = 100_000
PLAN, SHARDS, PROBLEMS, KEPT = "plan.json", "shards.jsonl", "problems.jsonl", "kept"
_FORMAT, _VERSION = "vse-shards plan", 1
# Two versions of these may store one picture as other bytes, or reject it.
_LIBRARIES = ("simplejpeg", "Pillow", "pillow-heif", "pillow-jxl-plugin")


@dataclass(frozen=True)
class PlannedShard:
    """One shard of a plan.

    Attributes:
        split: name of the split.
        stem: file name without suffix.
        first_key: key of the first row.
        fingerprint: as of `shard_fingerprint`.
        piece: file of its rows.
        first: number of its first row in the piece.
        rows: number of rows.
    """

    split: str
    stem: str
    first_key: int
    fingerprint: str
    piece: str
    first: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """A plan, but for its shards.

    Attributes:
        id: digest of all that determines the files.
        name: name of the source.
        read: rows and problems of the source.
        build: section of the manifest.
        source: section of the manifest.
        options: rejects and leaks that are accepted.
        libraries: version of each library that decodes or encodes, "" if it is not installed.
        notes: lines about the source that its owner must know.
        lists: sha256 of ``shards.jsonl`` and ``problems.jsonl``, by name.
    """

    id: str
    name: str
    read: int
    build: dict[str, Any]
    source: dict[str, Any]
    options: dict[str, Any]
    libraries: dict[str, str]
    notes: tuple[str, ...]
    lists: dict[str, str]


def folder_of(out: OutputFolder) -> OutputFolder:
    """Return the folder of the plan of a dataset."""
    return OutputFolder(f"{out.path}/{PLAN_FOLDER}")


def plan_id(sections: dict[str, Any]) -> str:
    """Return the id of the plan of a dataset; ``sections`` are those of its manifest."""
    text = json.dumps([FORMAT_VERSION, sections, libraries()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def libraries() -> dict[str, str]:
    """Return the version of each library that decodes or encodes pictures, "" if there is none."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def accepted(options: BuildOptions) -> dict[str, Any]:
    """Return the options of a build that its end needs, as a plan lists them."""
    return {
        "max_rejects": [options.max_rejects.share, options.max_rejects.rows],
        "allow_missing": options.allow_missing,
        "allow_leaks": options.allow_leaks,
    }


def write_plan(folder: OutputFolder, plan: Plan) -> None:
    """Write ``plan.json``, which makes the folder a plan.

    Raises:
        OutputError: it cannot be written.
    """
    content = {"format": _FORMAT, "version": _VERSION, **asdict(plan)}
    folder.write(PLAN, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_plan(out: OutputFolder) -> Plan | None:
    """Read the plan of a dataset; None if there is none.

    Raises:
        DatasetError: it is no plan, or of another version.
        OutputError: it cannot be read.
    """
    folder = folder_of(out)
    text = folder.read(PLAN)
    if text is None:
        return None
    path = masked(f"{folder.path}/{PLAN}")
    try:
        content = parse_json(text)
        if content.pop("format") != _FORMAT:
            raise ValueError("it is another file")
        found = content.pop("version")
        if found != _VERSION:
            raise ValueError(f"it has version {found!r:.20}, this program reads {_VERSION}")
        checked = recorded.checked(content, recorded.PLAN, "plan")
        return Plan(**{**checked, "notes": tuple(checked["notes"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path}: is no plan: {str(error)[:80]}; run vse-shards plan again"
        ) from None


def read_shards(out: OutputFolder, plan: Plan) -> list[PlannedShard]:
    """Read the shards of a plan.

    Raises:
        DatasetError: they are not those that were written.
    """
    try:
        return [
            PlannedShard(**recorded.checked(parse_json(line), recorded.PLANNED, "shard"))
            for line in _lines(out, plan, SHARDS)
        ]
    except (TypeError, ValueError) as error:
        raise _other(out, SHARDS, str(error)[:80]) from None


def read_problems(out: OutputFolder, plan: Plan) -> Iterator[str]:
    """Yield the lines of the rejects of the source.

    Raises:
        DatasetError: they are not those that were written.
        OutputError: they cannot be read.
    """
    for line in _lines(out, plan, PROBLEMS):
        if not recorded.is_problem(line):
            raise _other(out, PROBLEMS, "a line is no reject")
        yield line


def _lines(out: OutputFolder, plan: Plan, name: str) -> Iterator[str]:
    """Yield the lines of a list of a plan.

    Raises:
        DatasetError: the file is not the one that was written.
        OutputError: it cannot be read.
    """
    folder = folder_of(out)
    if folder.sha256(name) != plan.lists.get(name):
        raise _other(out, name, "its sha256 differs")
    with storage.open_binary(f"{folder.path}/{name}") as file:
        for line in file:
            try:
                yield line.decode()
            except UnicodeDecodeError:
                raise _other(out, name, "a line is not UTF-8") from None


def _other(out: OutputFolder, name: str, reason: str) -> DatasetError:
    return DatasetError(
        f"{masked(folder_of(out).path)}/{name}: is not the file that was written ({reason}); run "
        "vse-shards plan again"
    )


def write_lines(folder: OutputFolder, name: str, lines: Iterable[str]) -> str:
    """Write a list of a plan, and return its sha256.

    Raises:
        OutputError: it cannot be written.
    """
    digest = hashlib.sha256()
    with folder.writing(name) as file:
        for line in lines:
            data = line.encode()
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def write_piece(
    folder: OutputFolder, name: str, rows: Iterable[tuple[str, str | None, str | None]]
) -> None:
    """Write rows, as `RowStore.in_order` yields them, to a piece, numbered from 0.

    Raises:
        OutputError: it cannot be written.
    """
    # An empty file is an empty database.
    with folder.writing(name) as file, closing(sqlite3.connect(file.name)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, body, image, regions)")
        numbered = ((number, *row) for number, row in enumerate(rows))
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", numbered)
        db.commit()


def remove_plan(out: OutputFolder) -> None:
    """Remove the plan of a dataset: first what makes it one.

    Raises:
        OutputError: it cannot be removed.
    """
    if out.remote or os.path.isdir(f"{out.path}/{PLAN_FOLDER}"):
        folder_of(out).remove(PLAN)
        remove_folder(out, PLAN_FOLDER)
