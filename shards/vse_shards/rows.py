"""Rows of a source in a SQLite file, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vse_shards.caption_table import CaptionTable, scratch_database, words_of
from vse_shards.filling import RowFiller, record_problem
from vse_shards.identity import (
    Repeats,
    caption_clash,
    leaked,
)
from vse_shards.plain_files import MOST_BYTES
from vse_shards.row_text import StoredRow, dump, from_columns
from vse_shards.sources import Problem, Row


@dataclass(frozen=True)
class Missing:
    """Number of missing images, and the names of the first three."""

    count: int
    first: list[str]


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
        outside: rows whose image is outside the folder of the images.

    Args:
        path: path of the file.
        read_only: open a file that another process has filled.
    """

    read = 0

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if read_only:
            self._db = _opened(path)
            return
        self._db = scratch_database(path)
        self._captions = CaptionTable(self._db)
        self._filler = RowFiller(self._db, self._captions)
        self.outside = self._filler.outside

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
            self._filler.add(row, allow_outside=allow_outside, prefix_ids=prefix_ids)
        self._filler.finish()
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

    def in_order(self, places: NDArray[np.int64]) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield all rows, as `from_columns` takes them, in another order than the source's.

        They are sorted on the disk, in ``TMPDIR``.

        Args:
            places: place of each row by its number, (numbers,) int64.
        """
        self._db.create_function("place", 1, lambda number: int(places[number]))
        query = "SELECT body, image, regions FROM rows ORDER BY place(number)"
        return iter(self._db.execute(query))

    def all_numbers(self) -> list[int]:
        """Return the numbers of all rows in the source's order."""
        return [number for (number,) in self._db.execute("SELECT number FROM rows ORDER BY 1")]

    def drop(self, number: int, problem: Problem | None) -> None:
        """Remove a row, for a reason if it is a loss."""
        self._db.execute("DELETE FROM rows WHERE number = ?", (number,))
        if problem is not None:
            record_problem(self._db, problem)
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


def _opened(path: Path) -> sqlite3.Connection:
    """Open a filled file, which may be a stranger's, so that reading a row computes nothing.

    Raises:
        sqlite3.Error: it is no database, or its rows are no stored ones.
    """
    db = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
    db.execute("PRAGMA trusted_schema = OFF")
    made = db.execute("SELECT substr(sql, 1, 12) FROM sqlite_master WHERE lower(name) = 'rows'")
    computed = db.execute("SELECT name FROM pragma_table_xinfo('rows') WHERE hidden")
    if made.fetchall() != [("CREATE TABLE",)] or computed.fetchall():
        db.close()
        raise sqlite3.DatabaseError("its rows are no table, or are computed")
    return db
