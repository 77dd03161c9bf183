"""A row as text in SQLite, and its identity."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vse_shards import storage
from vse_shards.sources import Caption, Location, RegionsAt, Row

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class StoredRow:
    """A row, and its identity: a text without paths, equal for rows that give equal samples."""

    row: Row
    identity: str


def to_body(row: Row, size: int | None) -> str:
    """Return a row as JSON without local paths.

    Args:
        row: the row.
        size: size of its picture in bytes, if it has one.
    """
    return dump(
        {
            **row.__dict__,
            "captions": [[caption.id, caption.text] for caption in row.captions],
            "image": row.image and [row.image.offset, size],
            "regions": row.regions and [storage.base_name(row.regions.path), row.regions.row],
        }
    )


def from_columns(body: str, image: str | None, regions: str | None) -> StoredRow:
    """Return the row of what `to_body` returned, with the paths of its image and regions.

    Raises:
        AttributeError, LookupError, RecursionError, TypeError, ValueError: it is another text.
    """
    content: dict[str, Any] = json.loads(body)
    for place in (image, regions):
        if not isinstance(place, str | None):
            raise TypeError(f"{place!r:.80} is no path")
    if (image is None) != (content["image"] is None):
        raise ValueError("its picture has no place")
    content["captions"] = tuple(Caption(*caption) for caption in content["captions"])
    if image is not None:
        content["image"] = Location(image, *content["image"])
    if regions is not None:
        content["regions"] = RegionsAt(regions, content["regions"][1])
    return StoredRow(Row(**content), body)


def dump(content: Any) -> str:
    """Return JSON as a row's identity has it."""
    return _encode(content)
