"""Logs of a run as JSON lines: one a training step, one a validation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vse_scale.errors import OutputError
from vse_scale.files import write_text

T = TypeVar("T")


class Record(Protocol):
    """An object that a log keeps; it has a ``step``."""

    def to_json(self) -> dict[str, Any]:
        """Return the object of its line."""
        ...


class Journal:
    """A log that is written: a file of JSON objects, one a line, each with its ``step``."""

    def __init__(self, path: Path, *, next_step: int) -> None:
        """Open ``path`` to go on before ``next_step``; records from there on are removed.

        A run that was killed had recorded steps that its checkpoint does not hold; it trains them
        again.

        Raises:
            OutputError: a line is damaged.
        """
        kept = [line for line, found in _lines(path) if found["step"] < next_step]
        write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one record."""
        self._file.write(json.dumps(record.to_json()) + "\n")

    def flush(self) -> None:
        """Bring the records to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log; none where there is no such file.

    Raises:
        OutputError: a line is damaged.
    """
    return [found for _, found in _lines(path)]


def read_records(path: Path, kind: Callable[[object], T]) -> list[T]:
    """Return the records of a log, such as of ``StepRecord.from_json``; none without a file.

    Raises:
        OutputError: a line is damaged.
    """
    records = []
    for number, found in enumerate(read_journal(path), start=1):
        try:
            records.append(kind(found))
        except ValueError as error:
            raise _damaged(path, number, error) from error
    return records


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the whole lines and their objects: a kill may have cut off the last line."""
    if not path.exists():
        return []
    lines = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                lines.append((line, _parsed(path, number, line)))
    return lines


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number, error) from error
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise _damaged(path, number, "no object with a step")
    return found


def _damaged(path: Path, number: int, reason: object) -> OutputError:
    return OutputError(f"{path}: is damaged (line {number}: {reason}); restore or remove it")
