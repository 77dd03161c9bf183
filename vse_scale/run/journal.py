"""A run's records as JSON lines: one a training step, one a validation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON objects, one a line, each with the ``step`` it belongs to."""

    def __init__(self, path: Path, *, next_step: int) -> None:
        """Open ``path`` to go on before ``next_step``; records from there on are taken back.

        A run that was killed had recorded steps that its checkpoint does not hold; it trains them
        again.
        """
        self._path = path
        kept = [line for line in _lines(path) if json.loads(line)["step"] < next_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Put what was written on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the records of ``path``; none where there is no such file."""
    return [json.loads(line) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    """Whole lines only: the last one may have been cut off by a kill."""
    if not path.exists():
        return []
    with path.open() as file:
        return [line for line in file if line.endswith("\n")]
