"""Rows of a source in a SQLite file, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vse_shards import reach, storage
from vse_shards.caption_table import CaptionTable, scratch_database, words_of
from vse_shards.identity import (
    Repeats,
    caption_clash,
    clash,
    leaked,
    named_alike,
    prefixed,
    same_picture,
)
from vse_shards.masking import masked
from vse_shards.notes import shown
from vse_shards.opening import MAX_FILE_BYTES
from vse_shards.row_text import StoredRow, dump, from_columns, to_columns
from vse_shards.sources import Caption, Location, Problem, Row

REPEATED = "duplicate caption"  # reason of a row that says again what another has said


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
        return (
            f"{source}: {self.count:,} rows name files outside the folder of the images: "
            f"{', '.join(self._first)}{' ...' if self.count > 3 else ''}; they are rejected; "
            f"{self.remedy()}"
        )

    def remedy(self) -> str:
        """Return how such rows are read."""
        known = self._parent not in (None, "", "/")
        return f"read them with {f'--images {self._parent}, or ' if known else ''}--allow-outside"


@dataclass(frozen=True)
class Picture:
    """Place of a stored row's picture: its bytes are ``size`` bytes of ``path`` from ``offset``.

    The id is JSON, as the table has it.
    """

    image_id: str
    path: str
    offset: int
    size: int


class RowStore:
    """Rows in a SQLite file, numbered in the order of the source.

    An id is one picture: rows of one id and split join their captions if they show the same
    picture, and end the build if they do not.

    Attributes:
        read: number of rows and problems that were read.

    Args:
        path: path of the file.
        read_only: open a file that another process has filled.
    """

    read = 0

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.outside = Outside()
        if read_only:
            self._db = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
            return
        self._db = scratch_database(path)
        self._db.execute(
            "CREATE TABLE rows (number INTEGER PRIMARY KEY, split TEXT, image_id TEXT,"
            " image TEXT, regions TEXT, body TEXT, UNIQUE (image_id, split))"
        )
        # Captions of further rows of an image: joined once, at the end, so that many stay cheap.
        self._db.execute(
            "CREATE TABLE more (number INTEGER PRIMARY KEY, row INTEGER, origin TEXT,"
            " partial INTEGER, captions TEXT)"
        )
        self._captions = CaptionTable(self._db)
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
        prefix_ids: bool = False,
    ) -> dict[str, int]:
        """Store all rows and problems of a source.

        Args:
            rows: rows and problems of the source.
            splits: new name of each selected split of the source; None selects all.
            allow_outside: accept rows whose image is outside the folder of the images.
            prefix_ids: put the source's file and folder before each id.

        Returns:
            The number of rows of each split that is not selected.

        Raises:
            SourceError: one id has two pictures, or two captions have one id.
            OSError: a picture cannot be read, to compare it with another of the same id.
        """
        others: dict[str, int] = {}
        for row in rows:
            if row.split is not None and splits is not None:
                if row.split not in splits:
                    others[row.split] = others.get(row.split, 0) + 1
                    continue
                row = replace(row, split=splits[row.split])
            self.read += 1
            if isinstance(row, Problem):
                self._refuse(row)
                continue
            if prefix_ids:
                row = prefixed(row)
            if row.image is not None and reach.is_outside(row.image.path):
                self._add_outside(row, row.image, allow_outside)
            else:
                self._add(row)
        self._join_all()
        twice = self._captions.id_that_stands_twice()
        if twice is not None:
            raise caption_clash(twice[0], *(stored.row for stored in self.fetch(twice[1:])))
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

    def leaks(self) -> str:
        """Return a line about the ids that are in more than one split, "" if none is.

        Raises:
            OSError: a picture cannot be read.
        """
        query = "FROM (SELECT image_id FROM rows GROUP BY image_id HAVING COUNT(*) > 1)"
        (count,) = self._db.execute(f"SELECT COUNT(*) {query}").fetchone()
        if not count:
            return ""
        ids = [key for (key,) in self._db.execute(f"SELECT image_id {query} LIMIT 3")]
        numbers = self._db.execute(
            "SELECT number FROM rows WHERE image_id = ? ORDER BY number", (ids[0],)
        )
        first, second, *_ = (stored.row for stored in self.fetch(n for (n,) in numbers.fetchall()))
        return leaked(count, [str(json.loads(key)) for key in ids], first, second)

    def repeats(self) -> Repeats:
        """Count the captions that are equal to another, within an image and between images."""
        kept, shared, most, images, row = self._captions.count_repeats()
        if not shared:
            return Repeats(kept, 0, "", 0)
        (stored,) = self.fetch([row])
        text = next(c.text for c in stored.row.captions if hash(words_of(c.text)) == most)
        return Repeats(kept, shared, text, images)

    def numbers(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of a split's rows in the source's order, (rows,) int64."""
        cursor = self._db.execute("SELECT number FROM rows WHERE split = ? ORDER BY 1", (split,))
        return np.fromiter((number for (number,) in cursor), np.int64)

    def fetch(self, numbers: Iterable[int]) -> list[StoredRow]:
        """Return the rows with these numbers, in this order."""
        query = "SELECT body, image, regions FROM rows WHERE number = ?"
        return [
            from_columns(*self._db.execute(query, (int(number),)).fetchone()) for number in numbers
        ]

    def all_numbers(self) -> list[int]:
        """Return the numbers of all rows in the source's order."""
        return [number for (number,) in self._db.execute("SELECT number FROM rows ORDER BY 1")]

    def drop(self, number: int, problem: Problem | None) -> None:
        """Remove a row, for a reason if it is a loss."""
        self._db.execute("DELETE FROM rows WHERE number = ?", (number,))
        if problem is not None:
            self._refuse(problem)
        self._db.commit()

    def pictures(self, split: str) -> Iterator[Picture]:
        """Yield the pictures of a split in the source's order; a row without one has size 0."""
        query = (
            "SELECT image_id, COALESCE(image, ''),"
            " COALESCE(json_extract(body, '$.image[0]'), 0),"
            " COALESCE(json_extract(body, '$.image[1]'), 0)"
            " FROM rows WHERE split = ? ORDER BY number"
        )
        return (Picture(*found) for found in self._db.execute(query, (split,)))

    def move(self, numbers: Iterable[int], split: str) -> None:
        """Put rows into another split."""
        for number in numbers:
            (text,) = self._db.execute(
                "SELECT body FROM rows WHERE number = ?", (number,)
            ).fetchone()
            body = dump({**json.loads(text), "split": split})
            self._db.execute(
                "UPDATE rows SET split = ?, body = ? WHERE number = ?", (split, body, number)
            )
        self._db.commit()

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
        # Before the file is looked at: most rows of a table join, and name the same file again.
        if row.partial and self._join(row, image_id, read=False):
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
            (row.split, image_id, *to_columns(row, size)),
        )
        if added.rowcount:
            self._captions.add(int(added.lastrowid or 0), row.captions)
        elif not self._join(row, image_id, read=True):
            raise clash(self._earlier(row, image_id)[1], row)
        return None

    def _earlier(self, row: Row, image_id: str) -> tuple[int, Row]:
        """Return number and content of the earlier row of the same id and split."""
        (number,) = self._db.execute(
            "SELECT number FROM rows WHERE image_id = ? AND split = ?", (image_id, row.split)
        ).fetchone()
        return number, self.fetch([number])[0].row

    def _join(self, row: Row, image_id: str, *, read: bool) -> bool:
        """Add a row's captions to the earlier row of its id, if that shows the same picture.

        Args:
            row: the further row.
            image_id: its id, as the table has it.
            read: compare the bytes of pictures in two places; else they count as different.
        """
        found = self._db.execute(
            "SELECT number, image, regions, body FROM rows WHERE image_id = ? AND split = ?",
            (image_id, row.split),
        ).fetchone()
        if found is None:
            return False
        number, image, regions, body = found
        earlier = from_columns(body, image, regions).row
        if not named_alike(earlier, row) and not (read and same_picture(earlier, row)):
            return False
        captions = [[caption.id, caption.text] for caption in row.captions]
        self._db.execute(
            "INSERT INTO more (row, origin, partial, captions) VALUES (?, ?, ?, ?)",
            (number, row.origin, row.partial, dump(captions)),
        )
        return True

    def _join_all(self) -> None:
        """Add the captions of further rows to the first row of their image."""
        query = "SELECT row, origin, partial, captions FROM more ORDER BY row, number"
        for number, group in groupby(self._db.execute(query), key=itemgetter(0)):
            (text,) = self._db.execute(
                "SELECT body FROM rows WHERE number = ?", (number,)
            ).fetchone()
            body = json.loads(text)
            known = {(text, None) for _, text in body["captions"]}
            known |= {(text, caption_id) for caption_id, text in body["captions"]}
            added = []
            for _, origin, partial, captions in group:
                for caption_id, text in json.loads(captions):
                    # A row of one caption without an id may be another person's: it is kept.
                    if (text, caption_id) in known and not (partial and caption_id is None):
                        self._refuse(_repeated(origin, body, text))
                        continue
                    known |= {(text, caption_id), (text, None)}
                    added.append([caption_id, text])
            body["captions"] += added
            self._db.execute("UPDATE rows SET body = ? WHERE number = ?", (dump(body), number))
            self._captions.add(number, [Caption(*caption) for caption in added])

    def _refuse_row(self, row: Row, reason: str, detail: str) -> None:
        key = masked(row.image_id) if isinstance(row.image_id, str) else row.image_id
        self._refuse(Problem(row.origin, key, row.split, reason, detail))

    def _refuse(self, problem: Problem) -> None:
        self._db.execute("INSERT INTO problems (line) VALUES (?)", (problem.to_line(),))


def _repeated(origin: str, body: dict[str, Any], text: str) -> Problem:
    detail = f"{body['origin']} has {shown(text)!r} of this image too"
    return Problem(origin, body["image_id"], body["split"], REPEATED, detail)
