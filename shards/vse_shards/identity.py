"""Identity of rows: one id is one picture, and a prefix tells apart ids that clash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import shown
from vse_shards.sources import Caption, Location, Row

# Origins are written as `captions.csv line 7`, `table.parquet row 3`, `part-0.tar: key`.
_PLACE_IN_FILE = re.compile(r"(?:: .*| (?:line|row|image) .*)$", re.DOTALL)


def prefix_of(row: Row) -> str:
    """Return the file that a row stands in and the folder of its picture, as a prefix of ids."""
    file = os.path.splitext(_PLACE_IN_FILE.sub("", row.origin))[0]
    # The name of a tar's member repeats the tar.
    folder = "" if row.name == row.origin else storage.parent(row.name).strip("/")
    return "/".join(part for part in (file, folder) if part)


def prefixed(row: Row) -> Row:
    """Return the row with its id, and those of its captions, under its prefix."""
    prefix = prefix_of(row)
    return replace(
        row,
        image_id=f"{prefix}/{row.image_id}",
        captions=tuple(
            caption if caption.id is None else Caption(f"{prefix}/{caption.id}", caption.text)
            for caption in row.captions
        ),
    )


def place_of(row: Row) -> tuple[str | int | None, ...]:
    """Return the place of a row's picture and of its regions, equal where both are the same.

    Returns:
        Path and offset of the picture, path and row of the regions.
    """
    image, regions = row.image, row.regions
    return (
        None if image is None else image.path,
        None if image is None else image.offset,
        None if regions is None else regions.path,
        None if regions is None else regions.row,
    )


def same_picture(one: Row, other: Row) -> bool:
    """Return whether two rows show one picture: at one place, or of the same bytes.

    Raises:
        OSError: a picture cannot be read.
    """
    if one.regions != other.regions:
        return False
    if one.image is None or other.image is None:
        return one.image is other.image
    return _place(one.image) == _place(other.image) or _digest(one.image) == _digest(other.image)


def _place(image: Location) -> tuple[str, int]:
    path = image.path if storage.is_url(image.path) else os.path.realpath(image.path)
    return path, image.offset


def _digest(image: Location) -> bytes:
    data = storage.read_bytes(image.path, image.offset, image.size)
    return hashlib.sha256(data).digest()


def clash(first: Row, second: Row) -> SourceError:
    """Return the error of two pictures under one id."""
    told = f"{shown(second.origin)}: {_described(first, second)}"
    return SourceError(f"{told}; one id is one picture: {remedy(first, second)}")


def caption_clash(caption_id: str | int, first: Row, second: Row) -> SourceError:
    """Return the error of two captions under one id."""
    return SourceError(
        f"caption id {shown(str(caption_id))} stands twice: at {shown(first.name)} in "
        f"{shown(first.origin)}, and at {shown(second.name)} in {shown(second.origin)}; "
        f"{remedy(first, second)}"
    )


def _described(first: Row, second: Row) -> str:
    here = "" if second.name == second.origin else f"the picture {shown(second.name)} here and "
    there = "another" if first.name == first.origin else shown(first.name)
    return f"image_id {shown(str(second.image_id))} is {here}{there} in {shown(first.origin)}"


def remedy(first: Row, second: Row) -> str:
    """Return the remedy for two rows that share an id; a prefix helps only where it differs."""
    if prefix_of(first) == prefix_of(second):
        return "correct the ids in the source, or read it without them"
    return "correct the ids, or keep both with --prefix-ids"


def leaked(count: int, ids: Sequence[str], first: Row, second: Row) -> str:
    """Return the line about images in more than one split.

    Args:
        count: number of ids in more than one split.
        ids: the first three of them.
        first: a row of the first id.
        second: a row of the same id in another split.
    """
    line = (
        f"{count:,} image{'s are' if count > 1 else ' is'} in more than one split: "
        f"{', '.join(map(shown, ids))}{' ...' if count > len(ids) else ''}; "
    )
    if same_picture(first, second):
        return line + "correct the source, or pass --allow-leaks"
    return (
        f"{line}but these are different pictures: {shown(second.origin)}: "
        f"{_described(first, second)}; {remedy(first, second)}"
    )


@dataclass(frozen=True)
class Repeats:
    """Captions that occur more than once.

    Attributes:
        kept: captions equal to another of the same image, from rows of one caption each.
        shared: captions equal to one of another image.
        most: the caption that most images share, "" if there is none.
        images: number of images that share it.
    """

    kept: int
    shared: int
    most: str
    images: int

    def lines(self) -> list[str]:
        """Return what the owner of the data should know."""
        told = []
        if self.kept:
            told.append(
                f"{self.kept:,} caption{'s repeat' if self.kept > 1 else ' repeats'} another of "
                "the same image word for word; kept, as several people may write the same"
            )
        if self.shared:
            told.append(
                f"{self.shared:,} captions are equal to one of another image, most often "
                f"{shown(self.most)!r} ({self.images:,} images): in training and evaluation such a "
                "caption counts as wrong for all images but its own"
            )
        return told
