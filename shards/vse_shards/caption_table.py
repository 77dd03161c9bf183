"""Captions of a source in SQLite, to find those that repeat without holding them in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable

from vse_shards.sources import Caption


class CaptionTable:
    """Row, id and a number of the text of every caption.

    Args:
        db: database to create the table in.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._db.execute("CREATE TABLE captions (row INTEGER, id, text INTEGER)")

    def add(self, row: int, captions: Iterable[Caption[str | int | None]]) -> None:
        """Add captions of a row."""
        self._db.executemany(
            "INSERT INTO captions VALUES (?, ?, ?)",
            [(row, caption.id, text_number(caption.text)) for caption in captions],
        )

    def count_repeats(self) -> tuple[int, int, int, int, int]:
        """Count the captions that are equal to another.

        Returns:
            Captions equal to another of the same row; captions equal to one of another row; of the
            text in most rows: its number, the number of its rows, and the first of them.
        """
        (within,) = self._db.execute(
            "SELECT COALESCE(SUM(n - 1), 0) FROM"
            " (SELECT COUNT(*) n FROM captions GROUP BY row, text HAVING n > 1)"
        ).fetchone()
        # Beside MAX, SQLite takes the other columns from the row that has it.
        between, text, rows, first = self._db.execute(
            "SELECT COALESCE(SUM(n), 0), text, MAX(rows), first FROM"
            " (SELECT COUNT(*) n, COUNT(DISTINCT row) rows, text, MIN(row) first FROM captions"
            " GROUP BY text HAVING rows > 1)"
        ).fetchone()
        return within, between, text or 0, rows or 0, first or 0

    def id_that_stands_twice(self) -> tuple[str | int, int, int] | None:
        """Return a caption id that stands twice, with both rows.

        Ids that number the captions of each image are none of the dataset: None for these.
        """
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


def text_number(text: str) -> int:
    """Return 8 bytes of a text's digest as an integer of SQLite."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
