"""The sources by the name after ``--source``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vse_shards.sources.base import Source
from vse_shards.sources.jsonl import JsonlSource


@dataclass(frozen=True)
class SourceRequest:
    """What the command line says of a source.

    Attributes:
        input: path or URL.
        images: folder of the images, if it is given.
        columns: names of columns or keys, by the settled ones.
    """

    input: str
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


SOURCES: dict[str, Callable[[SourceRequest], Source]] = {
    "jsonl": lambda r: JsonlSource(r.input, r.images, r.columns),
}
