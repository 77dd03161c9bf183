"""Captions of a source in SQLite, to find those that repeat without holding them in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from vse_shards.sources import Caption

_BATCH = 5000  # captions that are written at once


def scratch_database(path: Path) -> sqlite3.Connection:
    """Open a new database that ends with its process, in place of a file that a killed one left."""
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    # There is nothing to recover: no rollback log.
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    return db


def words_of(text: str) -> str:
    """Return a caption as it is compared: its case and the spaces in it do not count."""
    return " ".join(text.casefold().split())


class CaptionTable:
    """Row, id and a number of the text of every caption.

    Args:
        db: database to create the table in.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._waiting: list[tuple[int, str | int | None, int]] = []
        self._db.execute("CREATE TABLE captions (row INTEGER, id, text INTEGER)")

    def add(self, row: int, captions: Iterable[Caption[str | int | None]]) -> None:
        """Add captions of a row."""
        # The hash is of this process alone, as the table is; a digest would take longer.
        self._waiting += [(row, caption.id, hash(words_of(caption.text))) for caption in captions]
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._db.executemany("INSERT INTO captions VALUES (?, ?, ?)", self._waiting)
        self._waiting.clear()

    def count_repeats(self) -> tuple[int, int, int, int, int]:
        """Count the captions that are equal to another.

        Returns:
            Captions equal to another of the same row; captions equal to one of another row; of the
            text in most rows: its number, the number of its rows, and the first of them.
        """
        self._flush()
        again = "SELECT 1 FROM captions GROUP BY text HAVING COUNT(*) > 1 LIMIT 1"
        if self._db.execute(again).fetchone() is None:
            return 0, 0, 0, 0, 0  # of most sources, and one sort in place of three
        (within,) = self._db.execute(
            "SELECT COALESCE(SUM(n - 1), 0) FROM"
            " (SELECT COUNT(*) n FROM captions GROUP BY row, text HAVING n > 1)"
        ).fetchone()
        between = (
            "(SELECT text, COUNT(*) n, COUNT(DISTINCT row) rows, MIN(row) first FROM captions"
            " GROUP BY text HAVING rows > 1)"
        )
        (count,) = self._db.execute(f"SELECT COALESCE(SUM(n), 0) FROM {between}").fetchone()
        if not count:
            return within, 0, 0, 0, 0
        text, rows, first = self._db.execute(
            f"SELECT text, rows, first FROM {between} ORDER BY rows DESC, first LIMIT 1"
        ).fetchone()
        return within, count, text, rows, first

    def id_that_stands_twice(self) -> tuple[str | int, int, int] | None:
        """Return a caption id that stands twice, with both rows.

        Ids that number the captions of each image are none of the dataset: None for these.
        """
        self._flush()
        twice: tuple[str | int, int, int] | None = self._db.execute(
            "SELECT id, MIN(row), MAX(row) FROM captions WHERE id IS NOT NULL"
            " GROUP BY id HAVING COUNT(*) > 1 ORDER BY MIN(row) LIMIT 1"
        ).fetchone()
        return None if twice is None or self._number_within_images() else twice

    def _number_within_images(self) -> bool:
        """Return whether nearly every row counts its ids up from the same start, 0 or 1."""
        rows, counting = self._db.execute(
            "SELECT COUNT(*), SUM(low = start AND high - low + 1 = n) FROM"
            " (SELECT MIN(id) low, MAX(id) high, COUNT(*) n FROM captions WHERE id IS NOT NULL"
            " GROUP BY row), (SELECT MIN(id) start FROM captions WHERE id IS NOT NULL)"
            " WHERE start IN (0, 1)"
        ).fetchone()
        return bool(rows) and bool(counting >= 0.9 * rows)
