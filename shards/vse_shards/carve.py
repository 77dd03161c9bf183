"""Splits carved out of ``train`` by image id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.progress import Progress
from vse_shards.rows import Picture, RowStore

SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")  # becomes part of file names
FROM = "train"
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_PROBE = 4096  # bytes read of each picture whose file size occurs twice


@dataclass(frozen=True)
class Carving:
    """A split to carve out: its name, and its percentage of the images of ``train``."""

    name: str
    percent: float

    @classmethod
    def parse(cls, name: str, value: str) -> Carving | None:
        """Read the ``5%`` of ``--split val=5%``; None if the value is no percentage.

        Raises:
            SourceError: the percentage leaves nothing on one side.
        """
        found = _SHARE.fullmatch(value)
        if found is None:
            return None
        percent = float(found[1])
        if not 0 < percent < 100 or name == FROM or not SPLIT_NAME.fullmatch(name):
            raise SourceError(
                f"--split {name}={value}: a part of {FROM} becomes another split; give a "
                "percentage over 0% and under 100%, such as --split val=5%"
            )
        return cls(name, percent)


def carve(
    store: RowStore, carvings: Sequence[Carving], source: str, *, adding: bool = False
) -> str:
    """Move images from ``train`` to the splits to carve out, and return a line about them.

    The id of an image alone decides, so an image stays on its side when others are added. Pictures
    of equal bytes go where the first of them in the source goes.

    Args:
        store: rows of the source.
        carvings: splits to carve out.
        source: name of the source, for messages.
        adding: the rows add to a dataset that has the splits, so that each may get none of them.

    Raises:
        SourceError: there is nothing to carve from, or the split to carve out exists.
        StorageError: a storage does not answer.
    """
    splits = store.splits()
    for carving in carvings:
        if carving.name in splits:
            raise SourceError(
                f"{source}: has a split {carving.name!r} of its own, of {splits[carving.name]:,} "
                f"images; omit --split {carving.name}={carving.percent:g}%, or carve one of "
                "another name"
            )
    if FROM not in splits and not adding:
        raise SourceError(
            f"{source}: has no split {FROM!r} to carve from, it has {', '.join(splits)}; name one "
            f"with --split {FROM}=SPLIT"
        )
    moved: dict[str, list[int]] = {carving.name: [] for carving in carvings}
    for number, name in _sides(store, carvings):
        if name is not None:
            moved[name].append(number)
    for carving in carvings:
        if not moved[carving.name] and not adding:
            raise SourceError(
                f"{source}: {carving.percent:g}% of {splits[FROM]:,} images came out as none; "
                f"give --split {carving.name} a larger percentage"
            )
        store.move(moved[carving.name], carving.name)
    parts = ", ".join(
        f"{len(moved[carving.name]):,} to {carving.name} ({carving.percent:g}%)"
        for carving in carvings
    )
    return f"split {FROM}: {splits.get(FROM, 0):,} images, of which by their ids {parts}"


def _side(image_id: str, carvings: Sequence[Carving]) -> str | None:
    digest = hashlib.blake2b(image_id.encode(), digest_size=8, person=b"vse-carve").digest()
    place = int.from_bytes(digest, "big") / 2**64 * 100
    for carving in carvings:
        if place < carving.percent:
            return carving.name
        place -= carving.percent
    return None


def _sides(store: RowStore, carvings: Sequence[Carving]) -> Iterator[tuple[int, str | None]]:
    """Yield every row of ``train`` with the split to carve it into, None to leave it."""
    sides: dict[tuple[int, bytes], str | None] = {}
    read = 0
    with Progress("comparing files of equal size", None, "files") as progress:
        for picture, size_occurs_twice in store.pictures(FROM):
            side = _side(picture.image_id, carvings)
            probe = _probe(picture) if size_occurs_twice else None
            if probe is not None:
                read += 1
                progress.update(read)
                side = sides.setdefault((picture.size, probe), side)
            yield picture.number, side


def _probe(picture: Picture) -> bytes | None:
    """Return a digest of the middle of a picture's bytes; None if it cannot be read."""
    # Part of the bytes is enough: that strangers share a side costs nothing.
    size = min(_PROBE, picture.size)
    start = picture.offset + (picture.size - size) // 2
    try:
        data = storage.read_bytes(picture.path, start, size)
    except OSError:
        return None
    return hashlib.blake2b(data, digest_size=8).digest()
