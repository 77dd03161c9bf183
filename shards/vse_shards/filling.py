"""Adding of a source's rows to a row store: what is refused, and what joins an earlier row."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from vse_shards import reach, storage
from vse_shards.caption_table import CaptionTable
from vse_shards.identity import clash, place_of, prefixed, same_picture
from vse_shards.masking import masked
from vse_shards.notes import shown
from vse_shards.opening import MAX_FILE_BYTES
from vse_shards.row_text import dump, from_columns, to_body
from vse_shards.sources import Caption, Location, Problem, Row

REPEATED = "duplicate caption"  # reason of a row that says again what another has said
_BATCH = 1000  # captions of further rows that are written at once
_PLACE = "image, start, regions, region"  # columns of what `place_of` returns
_TABLES = (
    f"rows (number INTEGER PRIMARY KEY, split TEXT, image_id TEXT, {_PLACE},"
    " body TEXT, UNIQUE (image_id, split))",
    # Captions of further rows of an image: joined once, at the end, so that many stay cheap.
    "more (number INTEGER PRIMARY KEY, row INTEGER, origin TEXT, partial INTEGER, id, text TEXT)",
    "missing (number INTEGER PRIMARY KEY, name TEXT UNIQUE)",
    "problems (number INTEGER PRIMARY KEY, line TEXT)",
)


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


def record_problem(db: sqlite3.Connection, problem: Problem) -> None:
    """Add a problem to the table of problems."""
    db.execute("INSERT INTO problems (line) VALUES (?)", (problem.to_line(),))


class RowFiller:
    """Adds rows to the tables of a row store.

    Args:
        db: database, in which the tables are created.
        captions: the store's captions.
    """

    def __init__(self, db: sqlite3.Connection, captions: CaptionTable) -> None:
        self.outside = Outside()
        self._db, self._captions = db, captions
        self._waiting: list[tuple[int, str, bool, str | int | None, str]] = []
        for table in _TABLES:
            db.execute(f"CREATE TABLE {table}")

    def add(self, row: Row | Problem, *, allow_outside: bool, prefix_ids: bool) -> None:
        """Add a row, or join its captions to the earlier row of its image, or refuse it.

        Args:
            row: row or problem of a source.
            allow_outside: accept rows whose image is outside the folder of the images.
            prefix_ids: put the source's file and folder before each id.

        Raises:
            SourceError: an earlier row has another picture under the same id.
            OSError: a picture cannot be read, to compare it with another of the same id.
        """
        if isinstance(row, Problem):
            record_problem(self._db, row)
            return
        if prefix_ids:
            row = prefixed(row)
        if row.image is not None and reach.is_outside(row.image.path):
            self._add_outside(row, row.image, allow_outside)
        else:
            self._add(row)

    def _add_outside(self, row: Row, image: Location, allowed: bool) -> None:
        """Store a row whose image is outside the folder of the images, or refuse it."""
        path = reach.unmarked(image.path)
        if allowed and not reach.is_chained(path):
            try:
                return self._add(replace(row, image=replace(image, path=path)))
            except OSError as error:  # such as of a protocol that is not installed
                return self._refuse(row, "unreadable", error.strerror or type(error).__name__)
        if reach.is_web(path):
            detail = "a web address; these are not downloaded, but img2dataset does it"
        elif reach.is_chained(path):
            detail = "a URL of several protocols; these are never opened"
        else:
            detail = "outside the folder of the images"
            self.outside.add(row.name, path)
        return self._refuse(row, "outside", f"{reach.shown(row.name)} is {detail}")

    def _add(self, row: Row) -> None:
        image_id, place = json.dumps(row.image_id), place_of(row)
        # Before the file is looked at: most rows of a table join, and name the same file again.
        captioned = any(caption.text.strip() for caption in row.captions)
        if row.partial and captioned:
            number, *earlier = self._earlier(row, image_id)
            if number is not None and tuple(earlier) == place:
                return self._join(row, number)
        size = _size_of(row)
        if size is not None and not 0 <= size <= MAX_FILE_BYTES:
            return self._refuse_file(row, size)
        if not captioned:
            return self._refuse(row, "no caption", "it has no text, or an empty one")
        added = self._db.execute(
            f"INSERT OR IGNORE INTO rows (split, image_id, {_PLACE}, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.split, image_id, *place, to_body(row, size)),
        )
        if added.rowcount:
            self._captions.add(int(added.lastrowid or 0), row.captions)
            return None
        (number, *_) = self._earlier(row, image_id)
        earlier_row = self._row(number)
        if not same_picture(earlier_row, row):
            raise clash(earlier_row, row)
        return self._join(row, number)

    def _earlier(self, row: Row, image_id: str) -> tuple[Any, ...]:
        """Return number and place of the earlier row of the same id and split; (None,) if none."""
        found: tuple[Any, ...] | None = self._db.execute(
            f"SELECT number, {_PLACE} FROM rows WHERE image_id = ? AND split = ?",
            (image_id, row.split),
        ).fetchone()
        return found or (None,)

    def _row(self, number: int) -> Row:
        stored = self._db.execute(
            "SELECT body, image, regions FROM rows WHERE number = ?", (number,)
        ).fetchone()
        return from_columns(*stored).row

    def _join(self, row: Row, number: int) -> None:
        """Add a row's captions to an earlier row."""
        self._waiting += [(number, row.origin, row.partial, c.id, c.text) for c in row.captions]
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._db.executemany(
            "INSERT INTO more (row, origin, partial, id, text) VALUES (?, ?, ?, ?, ?)",
            self._waiting,
        )
        self._waiting.clear()

    def finish(self) -> None:
        """Add the captions of further rows to the first row of their image."""
        self._flush()
        query = "SELECT row, origin, partial, id, text FROM more ORDER BY row, number"
        for number, group in groupby(self._db.execute(query), key=itemgetter(0)):
            (text,) = self._db.execute(
                "SELECT body FROM rows WHERE number = ?", (number,)
            ).fetchone()
            body = json.loads(text)
            known = {(text, None) for _, text in body["captions"]}
            known |= {(text, caption_id) for caption_id, text in body["captions"]}
            added = []
            for _, origin, partial, caption_id, text in group:
                # A row of one caption without an id may be another person's: it is kept.
                if (text, caption_id) in known and not (partial and caption_id is None):
                    record_problem(self._db, _repeated(origin, body, text))
                    continue
                known |= {(text, caption_id), (text, None)}
                added.append([caption_id, text])
            body["captions"] += added
            self._db.execute("UPDATE rows SET body = ? WHERE number = ?", (dump(body), number))
            self._captions.add(number, [Caption(*caption) for caption in added])

    def _refuse_file(self, row: Row, size: int) -> None:
        if size >= 0:
            limit = f"{size:,} bytes, limit {MAX_FILE_BYTES:,}"
            return self._refuse(row, "too large", limit)
        # One problem per missing file, however many rows name it.
        first = self._db.execute("INSERT OR IGNORE INTO missing (name) VALUES (?)", (row.name,))
        return self._refuse(row, "missing image", row.name) if first.rowcount else None

    def _refuse(self, row: Row, reason: str, detail: str) -> None:
        key = masked(row.image_id) if isinstance(row.image_id, str) else row.image_id
        record_problem(self._db, Problem(row.origin, key, row.split, reason, detail))


def _repeated(origin: str, body: dict[str, Any], text: str) -> Problem:
    detail = f"{body['origin']} has {shown(text)!r} of this image too"
    return Problem(origin, body["image_id"], body["split"], REPEATED, detail)


def _size_of(row: Row) -> int | None:
    """Return the bytes of a row's image: -1 if it is not there, None if the row has none."""
    if row.image is None:
        return None
    return storage.file_size(row.image.path) if row.image.size is None else row.image.size
