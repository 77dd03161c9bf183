"""Rows of a source in a SQLite file, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vse_shards import reach, storage
from vse_shards.masking import masked
from vse_shards.sources import Caption, Location, Problem, RegionsAt, Row

MAX_FILE_BYTES = 1 << 29  # a file of more than 512 MB is not a photo


@dataclass(frozen=True)
class Missing:
    """Number of missing images, and the names of the first three."""

    count: int
    first: list[str]


class Outside:
    """Counts the rows whose image is outside the folder of the images."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []
        self._parent: str | None = None  # of all images, while every row names an absolute path

    def add(self, name: str, path: str) -> None:
        """Count a row that names ``name``, which is at ``path``."""
        folder = os.path.dirname(os.path.abspath(path)) if os.path.isabs(name) else ""
        if self.count == 0:
            self._parent = folder
        elif self._parent:
            self._parent = folder and os.path.commonpath([self._parent, folder])
        self.count += 1
        if len(self._first) < 3:
            self._first.append(reach.shown(name))

    def line(self, source: str) -> str:
        """Return a line for people about the rows of ``source``."""
        known = self._parent not in (None, "", "/")
        return (
            f"{source}: {self.count:,} rows name files outside the folder of the images: "
            f"{', '.join(self._first)}{' ...' if self.count > 3 else ''}; they are rejected; "
            f"read them with {f'--images {self._parent}, or ' if known else ''}--allow-outside"
        )


@dataclass(frozen=True)
class StoredRow:
    """A row, and its identity: a text without paths, equal for rows that give equal samples."""

    row: Row
    identity: str


class RowStore:
    """Rows in a SQLite file, numbered in the order of the source.

    Args:
        path: path of the file.
        read_only: open a file that another process has filled.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.outside = Outside()
        if read_only:
            self._db = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
            return
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path)
        # A store ends with its build, so there is nothing to recover: no rollback log.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE rows (number INTEGER PRIMARY KEY, split TEXT, image_id TEXT,"
            " image TEXT, regions TEXT, body TEXT, UNIQUE (image_id, split))"
        )
        self._db.execute("CREATE TABLE missing (number INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        self._db.execute("CREATE TABLE problems (number INTEGER PRIMARY KEY, line TEXT)")

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def fill(
        self,
        rows: Iterable[Row | Problem],
        splits: dict[str, str] | None,
        *,
        allow_outside: bool = False,
    ) -> dict[str, int]:
        """Store all rows and problems of a source.

        Args:
            rows: rows and problems of the source.
            splits: new name of each selected split of the source; None selects all.
            allow_outside: accept rows whose image is outside the folder of the images.

        Returns:
            The number of rows of each split that is not selected.
        """
        others: dict[str, int] = {}
        for row in rows:
            if row.split is not None and splits is not None:
                if row.split not in splits:
                    others[row.split] = others.get(row.split, 0) + 1
                    continue
                row = replace(row, split=splits[row.split])
            if isinstance(row, Problem):
                self._refuse(row)
            elif row.image is not None and reach.is_outside(row.image.path):
                self._add_outside(row, row.image, allow_outside)
            else:
                self._add(row)
        self._db.commit()
        return others

    def missing(self) -> Missing:
        """Return the missing images."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM missing").fetchone()
        first = self._db.execute("SELECT name FROM missing ORDER BY number LIMIT 3")
        return Missing(count, [name for (name,) in first])

    def splits(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return dict(self._db.execute("SELECT split, COUNT(*) FROM rows GROUP BY split"))

    def in_several_splits(self) -> tuple[int, list[str]]:
        """Return the number of ids in more than one split, and the first three of them."""
        query = "FROM (SELECT image_id FROM rows GROUP BY image_id HAVING COUNT(*) > 1)"
        (count,) = self._db.execute(f"SELECT COUNT(*) {query}").fetchone()
        first = self._db.execute(f"SELECT image_id {query} LIMIT 3").fetchall()
        return count, [str(json.loads(image_id)) for (image_id,) in first]

    def numbers(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of a split's rows in the source's order, (rows,) int64."""
        cursor = self._db.execute("SELECT number FROM rows WHERE split = ? ORDER BY 1", (split,))
        return np.fromiter((number for (number,) in cursor), np.int64)

    def fetch(self, numbers: Iterable[int]) -> list[StoredRow]:
        """Return the rows with these numbers, in this order."""
        query = "SELECT body, image, regions FROM rows WHERE number = ?"
        return [
            _from_columns(*self._db.execute(query, (int(number),)).fetchone()) for number in numbers
        ]

    def problems(self) -> Iterable[str]:
        """Yield the lines of all problems of the source."""
        for (line,) in self._db.execute("SELECT line FROM problems ORDER BY number"):
            yield line

    def digest(self) -> str:
        """Return the sha256 over all rows and problems, in order, without absolute paths."""
        # Bodies hold sizes of image files but no paths: a moved source keeps its digest.
        digest = hashlib.sha256()
        for (body,) in self._db.execute("SELECT body FROM rows ORDER BY number"):
            digest.update(body.encode())
        for line in self.problems():
            digest.update(line.encode())
        return digest.hexdigest()

    def _add_outside(self, row: Row, image: Location, allowed: bool) -> None:
        """Store a row whose image is outside the folder of the images, or refuse it."""
        path = reach.unmarked(image.path)
        if allowed and not reach.is_chained(path):
            try:
                return self._add(replace(row, image=replace(image, path=path)))
            except OSError as error:  # such as of a protocol that is not installed
                return self._refuse_row(row, "unreadable", error.strerror or type(error).__name__)
        if reach.is_web(path):
            detail = "a web address; these are not downloaded, but img2dataset does it"
        elif reach.is_chained(path):
            detail = "a URL of several protocols; these are never opened"
        else:
            detail = "outside the folder of the images"
            self.outside.add(row.name, path)
        return self._refuse_row(row, "outside", f"{reach.shown(row.name)} is {detail}")

    def _add(self, row: Row) -> None:
        image_id = json.dumps(row.image_id)
        if row.partial and self._join(row, image_id):
            return
        size = None
        if row.image is not None and row.image.size is None:
            size = storage.file_size(row.image.path)
            if size < 0:
                # One problem per missing file, however many rows name it.
                first = self._db.execute(
                    "INSERT OR IGNORE INTO missing (name) VALUES (?)", (row.name,)
                ).rowcount
                return self._refuse_row(row, "missing image", row.name) if first else None
            if size > MAX_FILE_BYTES:
                limit = f"{size:,} bytes, limit {MAX_FILE_BYTES:,}"
                return self._refuse_row(row, "too large", limit)
        added = self._db.execute(
            "INSERT OR IGNORE INTO rows (split, image_id, image, regions, body)"
            " VALUES (?, ?, ?, ?, ?)",
            (row.split, image_id, *_to_columns(row, size)),
        ).rowcount
        if not added:
            self._refuse_row(row, "duplicate image_id", f"an earlier row has {image_id}")
        return None

    def _join(self, row: Row, image_id: str) -> bool:
        """Add a row's captions to an earlier row of the same image."""
        found = self._db.execute(
            "SELECT number, body FROM rows WHERE image_id = ? AND split = ?", (image_id, row.split)
        ).fetchone()
        if found is None:
            return False
        number, text = found
        body = json.loads(text)
        body["captions"] += [[caption.id, caption.text] for caption in row.captions]
        self._db.execute("UPDATE rows SET body = ? WHERE number = ?", (_dump(body), number))
        return True

    def _refuse_row(self, row: Row, reason: str, detail: str) -> None:
        key = masked(row.image_id) if isinstance(row.image_id, str) else row.image_id
        self._refuse(Problem(row.origin, key, row.split, reason, detail))

    def _refuse(self, problem: Problem) -> None:
        self._db.execute("INSERT INTO problems (line) VALUES (?)", (problem.to_line(),))


def _to_columns(row: Row, size: int | None) -> tuple[str | None, str | None, str]:
    """Return a row's image path, regions path, and the rest as JSON without local paths."""
    body = {
        **row.__dict__,
        "captions": [[caption.id, caption.text] for caption in row.captions],
        "image": row.image
        and [row.image.offset, size if row.image.size is None else row.image.size],
        "regions": row.regions and [storage.base_name(row.regions.path), row.regions.row],
    }
    image = None if row.image is None else row.image.path
    regions = None if row.regions is None else row.regions.path
    return image, regions, _dump(body)


def _from_columns(body: str, image: str | None, regions: str | None) -> StoredRow:
    content: dict[str, Any] = json.loads(body)
    content["captions"] = tuple(Caption(*caption) for caption in content["captions"])
    if image is not None:
        content["image"] = Location(image, *content["image"])
    if regions is not None:
        content["regions"] = RegionsAt(regions, content["regions"][1])
    return StoredRow(Row(**content), body)


def _dump(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
