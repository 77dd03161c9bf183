"""Logs of a run as JSON lines: one a training step, one a validation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vse_scale.console import log
from vse_scale.errors import OutputError
from vse_scale.files import whole_file, write_text
from vse_shards.json_text import parse_json
from vse_shards.plain_files import open_plain

T = TypeVar("T")


class Record(Protocol):
    """An object that a log keeps; it has a ``step``."""

    def to_json(self) -> dict[str, Any]:
        """Return the object of its line."""
        ...


class Journal:
    """A log that is written: a file of JSON objects, one a line, each with its ``step``."""

    def __init__(
        self, path: Path, *, next_step: int, kind: Callable[[object], object] | None = None
    ) -> None:
        """Open ``path`` to go on before ``next_step``; records from there on are removed.

        A run that was killed had recorded steps that its checkpoint does not hold; it trains them
        again. Damaged lines are set aside, in a file beside ``path``.

        Args:
            path: of the log; made where it is not there.
            next_step: the first step that will be written.
            kind: makes a record of a line's object, and raises ValueError where it is none.
        """
        damaged = []
        with whole_file(path) as partial:
            with partial.open("w", encoding="utf-8") as file:
                for number, line in _numbered(path):
                    try:
                        found = _parsed(path, number, line)
                        if kind is not None:
                            kind(found)
                    except (OutputError, ValueError):
                        damaged.append((number, line))
                    else:
                        if found["step"] < next_step:
                            file.write(line)
            if damaged:
                _set_aside(path, damaged)
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


def record_changes(path: Path, step: int, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Append the settings that a run changes at ``step``, unless that is written down already.

    Args:
        path: of the log.
        step: the first that is trained with the new values.
        changes: old and new value by key.
    """
    described = {"step": step, "changes": {key: list(pair) for key, pair in changes.items()}}
    line = json.dumps(described) + "\n"
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    if not written.endswith(line):
        write_text(path, written + line)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log; none where there is no such file.

    Raises:
        OutputError: a line is damaged.
    """
    return list(each_record(path, lambda found: found))


def each_record(path: Path, kind: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Yield the records of a log, such as of ``StepRecord.from_json``; none without a file.

    A long run's are many: they are read as they are asked for.

    Raises:
        OutputError: a line is damaged.
    """
    for number, line in _numbered(path):
        try:
            yield kind(_parsed(path, number, line))
        except ValueError as error:
            raise _damaged(path, number, error) from error


def read_records(path: Path, kind: Callable[[dict[str, Any]], T]) -> list[T]:
    """Return the records that `each_record` yields."""
    return list(each_record(path, kind))


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the whole lines, counted from 1: a kill may have cut off the last line."""
    if path.exists():
        with TextIOWrapper(open_plain(path), "utf-8", "replace", "\n") as file:
            yield from ((n, line) for n, line in enumerate(file, start=1) if line.endswith("\n"))


def _set_aside(path: Path, damaged: list[tuple[int, str]]) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    with aside.open("a", encoding="utf-8") as file:
        file.writelines(line for _, line in damaged)
    count, first = len(damaged), damaged[0][0]
    log.warning(
        "%s: %d damaged line%s, the first line %d, moved to %s; the run goes on without %s",
        path, count, "s"[: count - 1], first, aside.name, "it" if count == 1 else "them",
    )  # fmt: skip


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise _damaged(path, number, error) from error
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise _damaged(path, number, "no object with a step")
    return found


def _damaged(path: Path, number: int, reason: object) -> OutputError:
    return OutputError(f"{path}: is damaged (line {number}: {reason}); restore or remove it")
