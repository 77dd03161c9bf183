"""Tables as people have them, read without building."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source


class Reading:
    """What a source gives: captions by image id, the rows, the problems, the notes."""

    def __init__(self, kind: str, path: object, **request: Any) -> None:
        self.source = open_source(kind, SourceRequest(str(path), **request))
        found = list(self.source.rows())
        self.rows = [row for row in found if isinstance(row, Row)]
        self.problems = [problem for problem in found if isinstance(problem, Problem)]
        self.notes = " | ".join(self.source.notes.lines(self.source.name))
        self.captions: dict[Any, list[str]] = {}
        for row in self.rows:
            self.captions.setdefault(row.image_id, []).extend(c.text for c in row.captions)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(problem.reason, problem.detail) for problem in self.problems]

    def ids(self) -> list[Any]:
        return [caption.id for row in self.rows for caption in row.captions]


@pytest.fixture
def read() -> type[Reading]:
    return Reading


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the folder of the test."""

    def write(name: str, data: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write
