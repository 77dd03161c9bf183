"""Types that all sources share: rows with the location of an image and its captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.json_text import parse_json
from vse_shards.notes import Notes

MAX_CAPTION_WORDS = 1000
MAX_CAPTION_CHARACTERS = 100_000  # of scripts without spaces, or data in a caption's place
_MOST_JSON = 1 << 31  # bytes of a file of annotations
INCOMPLETE = "incomplete tar"
"""Reason of a file that holds less than was written to it: an unknown number of rows is lost."""


Id = TypeVar("Id", bound=str | int | None, covariant=True)


@dataclass(frozen=True)
class Caption(Generic[Id]):
    """One caption; a source's ``id`` may be None, a dataset's is not."""

    id: Id
    text: str


@dataclass(frozen=True)
class Location:
    """Location of bytes: a file, or a range of bytes in it.

    Attributes:
        path: absolute path or URL.
        offset: offset of the first byte; 0 for a whole file.
        size: size in bytes; None extends to the end of the file.
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
        image: location of the image; None if the row has only regions.
        origin: place of the row in the source, for messages: ``captions.jsonl line 7``.
        name: the source's name of the image, for messages; without local folders.
        regions: location of the image's region features, if it has any.
        partial: whether further rows of the same image add captions to this one.
    """

    split: str
    image_id: str | int
    captions: tuple[Caption[str | int | None], ...]
    image: Location | None
    origin: str
    name: str
    regions: RegionsAt | None = None
    partial: bool = False


@dataclass(frozen=True)
class Problem:
    """An unusable row or caption, recorded in ``rejects.jsonl``."""

    origin: str
    key: str | int | None
    split: str | None
    reason: str
    detail: str

    def to_line(self) -> str:
        """Return the line of ``rejects.jsonl``."""
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
    """A layout that is read row by row.

    Attributes:
        kind: value of ``--source``, recorded in the manifest.
        options: keyword arguments of the constructor beside the path, out of the fields of
            `SourceRequest`; the command refuses an option that is not among them.
        name: name of the input, for messages.
        notes: lines for the owner of the input, filled while ``rows`` runs.
    """

    kind: ClassVar[str]
    options: ClassVar[frozenset[str]]
    name: str
    notes: Notes

    def __init__(self, path: str, **options: Any) -> None:
        """Open the input, which is a path or URL.

        Raises:
            SourceError: the input does not exist, or is no such layout.
        """

    def rows(self) -> Iterator[Row | Problem]:
        """Yield rows and problems in the source's order, the same in every call.

        Raises:
            SourceError: the source as a whole cannot be read.
        """
        ...


def usable_captions(
    texts: Any, ids: Any, *, origin: str, key: str | int | None, split: str | None
) -> tuple[tuple[Caption[str | int | None], ...], list[Problem]]:
    """Separate the usable captions of one image from the problems.

    Args:
        texts: expected to be a list of strings, or of objects with ``text`` and optional ``id``.
        ids: expected to be None, or a list of as many ids.
        origin: place of the row in the source.
        key: id of the image, for the problems.
        split: name of the split, for the problems.

    Returns:
        The usable captions, stripped of surrounding white space, and the problems. If no caption is
        usable, the last problem is ``no caption``.
    """
    problems: list[Problem] = []

    def refuse(reason: str, detail: str) -> None:
        problems.append(Problem(origin, key, split, reason, detail))

    if isinstance(texts, str):
        texts = [texts]
    if unfit := _unfit(texts, ids):
        refuse("malformed row", unfit)
        return (), problems
    captions: list[Caption[str | int | None]] = []
    for number, entry in enumerate(texts):
        caption_id = ids[number] if ids is not None else None
        text = entry
        if isinstance(entry, dict):
            text, caption_id = entry.get("text"), entry.get("id", caption_id)
        if not isinstance(text, str) or not (caption_id is None or is_id(caption_id)):
            said = "empty, or not UTF-8" if entry is None else _short(entry)
            refuse("malformed caption", f"caption {number + 1} is {said}")
        elif fault := _fault(text, number + 1, len(texts)):
            refuse(*fault)
        else:
            captions.append(Caption(caption_id, text.strip()))
    if not captions:
        refuse("no caption", f"{len(texts)} captions, none of which can be used")
    return tuple(captions), problems


def _unfit(texts: Any, ids: Any) -> str:
    """Return why texts and ids are not those of captions, "" if they are."""
    if not isinstance(texts, list):
        return f"captions are {_short(texts)}, not a list of strings"
    if ids is not None and (not isinstance(ids, list) or len(ids) != len(texts)):
        return f"{_short(ids)} are not the ids of {len(texts)} captions"
    if _is_tokens(texts):
        return f"{_short(texts)} are words of one caption: join them with spaces"
    return ""


def _is_tokens(texts: list[Any]) -> bool:
    """Return whether a list holds the words of one caption, as tokenizers give them."""
    # A full stop alone is no caption; a list of tags has none. Most lists end at their first text.
    return (
        len(texts) > 2
        and all(
            isinstance(text, str) and " " not in text and len(text.split()) == 1 for text in texts
        )
        and not all(any(map(str.isalnum, text)) for text in texts)
    )


def _fault(text: str, number: int, captions: int) -> tuple[str, str] | None:
    """Return reason and detail if the text cannot be a caption."""
    if not text.strip():
        return "empty caption", f"caption {number} of {captions}"
    # Words are of a letter and a space at least: most texts need not be divided.
    words = len(text.split()) if len(text) > MAX_CAPTION_WORDS else 0
    if words > MAX_CAPTION_WORDS:
        return "caption too long", f"{words:,} words, limit {MAX_CAPTION_WORDS:,}"
    if len(text) > MAX_CAPTION_CHARACTERS:
        return "caption too long", f"{len(text):,} characters, limit {MAX_CAPTION_CHARACTERS:,}"
    if not is_unicode(text):
        return "malformed caption", f"caption {number} is not valid Unicode"
    if "\0" in text:
        return "malformed caption", f"caption {number} has a zero byte"
    return None


def load_json(path: str) -> Any:
    """Read a JSON file.

    Raises:
        SourceError: the file cannot be read, or is not JSON.
    """
    try:
        return parse_json(storage.read_limited(path, _MOST_JSON), surrogates=True)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SourceError(f"{path}: is not JSON: {error}") from None


def decode_line(line: bytes) -> str | None:
    """Return a line as stripped text, or None if it is not UTF-8."""
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None


def is_id(value: Any, *, optional: bool = False) -> bool:
    """Return whether a value can be an id: an integer or a string."""
    if value is None:
        return optional
    if isinstance(value, str):
        return bool(value) and is_unicode(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_unicode(text: str) -> bool:
    """Return whether a string can be encoded as UTF-8; JSON allows lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
