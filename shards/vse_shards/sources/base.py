"""What every source yields: rows of an image (or where it lies) and its captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from vse_shards import storage
from vse_shards.errors import SourceError

MAX_CAPTION_WORDS = 1000
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
SPLIT_NAMES = {"train", "restval", "val", "valid", "validation", "dev", "test", "testall"}


@dataclass(frozen=True)
class Caption:
    """One caption; ``id`` is the source's own, or None where it has none."""

    id: str | int | None
    text: str


@dataclass(frozen=True)
class Where:
    """Where bytes lie: a file, or a stretch of one.

    Attributes:
        path: absolute path or URL.
        offset: of the first byte; 0 for a file of its own.
        size: in bytes; None: to the end of the file.
    """

    path: str
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True)
class RegionsAt:
    """Row ``row`` of an array (images, regions, channels) in a ``.npy`` file."""

    path: str
    row: int


@dataclass(frozen=True)
class Row:
    """One image with its captions, as a source describes it.

    Attributes:
        split: name of the source's split.
        image_id: the source's own id of the image.
        captions: at least one, in the source's order.
        image: where the image lies; None if the row has regions alone.
        origin: where the row was found, for messages: ``captions.jsonl line 7``.
        name: how the source names the image, for messages; free of the machine's folders.
        regions: where the image's region features lie, if it has any.
        partial: further rows of the same image add captions to this one.
    """

    split: str
    image_id: str | int
    captions: tuple[Caption, ...]
    image: Where | None
    origin: str
    name: str
    regions: RegionsAt | None = None
    partial: bool = False


@dataclass(frozen=True)
class Problem:
    """A row, or a caption of one, that cannot be used; it goes to ``rejects.jsonl``."""

    origin: str
    key: str | int | None
    split: str | None
    reason: str
    detail: str

    def to_line(self) -> str:
        """Give the line of ``rejects.jsonl``."""
        return (
            json.dumps(
                {
                    "source": self.origin,
                    "key": self.key,
                    "split": self.split,
                    "reason": self.reason,
                    "detail": self.detail,
                }
            )
            + "\n"
        )


class Source(Protocol):
    """A layout that can be read row by row.

    Attributes:
        kind: as after ``--source``.
        name: what is read, for messages.
    """

    kind: str
    name: str

    def rows(self) -> Iterator[Row | Problem]:
        """Yield rows in the source's order, always the same, and the problems found.

        Raises:
            SourceError: the source as a whole cannot be read.
        """
        ...


def usable_captions(
    texts: Any, ids: Any, *, origin: str, key: str | int | None, split: str | None
) -> tuple[tuple[Caption, ...], list[Problem]]:
    """Take the captions that can be used out of what a source has for one image.

    Args:
        texts: should be a list of strings, or of objects with ``text`` and perhaps ``id``.
        ids: should be None, or a list of as many ids.
        origin: where the row was found.
        key: the image's id, for the problems.
        split: name of the split, for the problems.

    Returns:
        The usable captions, stripped of surrounding white space, and the problems. Without any
        usable caption the last problem says so.
    """
    problems: list[Problem] = []

    def refuse(reason: str, detail: str) -> None:
        problems.append(Problem(origin, key, split, reason, detail))

    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list):
        refuse("malformed row", f"captions are {_short(texts)}, not a list of strings")
        return (), problems
    if ids is not None and (not isinstance(ids, list) or len(ids) != len(texts)):
        refuse("malformed row", f"{_short(ids)} are not the ids of {len(texts)} captions")
        return (), problems
    captions = []
    for number, entry in enumerate(texts):
        caption_id = ids[number] if ids is not None else None
        text = entry
        if isinstance(entry, dict):
            text, caption_id = entry.get("text"), entry.get("id", caption_id)
        if not isinstance(text, str) or not is_id(caption_id, optional=True):
            refuse("malformed caption", f"caption {number + 1} is {_short(entry)}")
        elif not text.strip():
            refuse("empty caption", f"caption {number + 1} of {len(texts)}")
        elif (words := len(text.split())) > MAX_CAPTION_WORDS:
            refuse("caption too long", f"{words:,} words, limit {MAX_CAPTION_WORDS:,}")
        elif not is_unicode(text):
            refuse("malformed caption", f"caption {number + 1} is not valid Unicode")
        else:
            captions.append(Caption(caption_id, text.strip()))
    if not captions:
        refuse("no caption", f"{len(texts)} captions, none of which can be used")
    return tuple(captions), problems


def load_json(path: str) -> Any:
    """Read a JSON file.

    Raises:
        SourceError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(storage.read_bytes(path))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: is not JSON: {error}") from None


def decode_line(line: bytes) -> str | None:
    """Give the text of a line without its white space, None if it is not UTF-8."""
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None


def is_id(value: Any, *, optional: bool = False) -> bool:
    """Whether a value can be an id: a whole number or a string."""
    if value is None:
        return optional
    if isinstance(value, str):
        return bool(value) and is_unicode(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8; JSON lets half a surrogate pair through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
