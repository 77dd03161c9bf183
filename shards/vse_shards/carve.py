"""Splits carved out of ``train`` by image id."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vse_shards.errors import SourceError
from vse_shards.images import Rejected
from vse_shards.likeness import LOOK, first_alike, look_of
from vse_shards.pool import each
from vse_shards.progress import Progress
from vse_shards.rows import Picture, RowStore
from vse_shards.shard import read_image
from vse_shards.sources import Location
from vse_shards.storage import lives_in_memory

SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")  # becomes part of file names
FROM = "train"
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_UNKNOWN = -1  # number of a split that the dataset added to does not say

Settled = Callable[[str | int], str | None]
"""Split that an image of a dataset has by its id, None if it is not of the dataset."""


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
    store: RowStore,
    carvings: Sequence[Carving],
    source: str,
    *,
    settled: Settled | None = None,
    may_be_empty: bool = False,
    workers: int = 1,
) -> str:
    """Move images from ``train`` to the splits to carve out, and return a line about them.

    The id of an image alone decides, so an image stays on its side when others are added. Pictures
    that look alike go where the first of them in the source goes.

    Args:
        store: rows of the source.
        carvings: splits to carve out.
        source: name of the source, for messages.
        settled: split by id in the dataset that is added to; its images stay there, and others go
            with them. A split may then get none of the rows. None if there is no such dataset.
        may_be_empty: whether a split may get none of the rows in any case.
        workers: number of processes that decode pictures.

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
    may_be_empty = may_be_empty or settled is not None
    if FROM not in splits and not may_be_empty:
        raise SourceError(
            f"{source}: has no split {FROM!r} to carve from, it has {', '.join(splits)}; name one "
            f"with --split {FROM}=SPLIT"
        )
    numbers = store.numbers(FROM)
    sides, alike = _sides(store, carvings, settled, workers)
    parts = []
    for side, carving in enumerate(carvings, start=1):
        moved = numbers[sides == side].tolist()
        if not moved and not may_be_empty:
            raise SourceError(
                f"{source}: {carving.percent:g}% of {splits[FROM]:,} images came out as none; "
                f"give --split {carving.name} a larger percentage"
            )
        store.move(moved, carving.name)
        parts.append(f"{len(moved):,} to {carving.name} ({carving.percent:g}%)")
    line = f"split {FROM}: {len(numbers):,} images, of which by their ids {', '.join(parts)}"
    return f"{line}; {alike:,} look like an earlier one and stay with it" if alike else line


def _side(image_id: str, carvings: Sequence[Carving]) -> int:
    """Return the number of the carving that an id falls to, from 1; 0 for none."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=8, person=b"vse-carve").digest()
    place = int.from_bytes(digest, "big") / 2**64 * 100
    for number, carving in enumerate(carvings, start=1):
        if place < carving.percent:
            return number
        place -= carving.percent
    return 0


def _sides(
    store: RowStore, carvings: Sequence[Carving], settled: Settled | None, workers: int
) -> tuple[NDArray[np.int8], int]:
    """Return the side of every image of ``train``, and how many look like an earlier one."""
    names = [FROM, *(carving.name for carving in carvings)]
    total = store.splits().get(FROM, 0)
    one = next(store.pictures(FROM), None)
    if one is not None and lives_in_memory(one.path):
        workers = 1  # others would each see a memory:// folder of their own
    own, known = np.zeros(total, np.int8), np.full(total, _UNKNOWN, np.int8)
    for place, picture in enumerate(store.pictures(FROM)):
        own[place] = _side(picture.image_id, carvings)
        split = settled(json.loads(picture.image_id)) if settled is not None else None
        if split in names:
            known[place] = names.index(split)
    # On disk: 208 bytes an image.
    with (
        tempfile.TemporaryFile() as file,
        Progress("comparing images", total, "images") as progress,
    ):
        for done, look in enumerate(each(_look, store.pictures(FROM), workers), start=1):
            file.write(look)
            progress.update(done)
        file.flush()
        looks = np.memmap(file, LOOK, "r", shape=(total,)) if total else np.zeros(0, LOOK)
        first = first_alike(looks)
    stored = np.flatnonzero(known != _UNKNOWN)
    by_group = own.copy()
    by_group[first[stored[::-1]]] = known[stored[::-1]]  # the first of a group's stored images
    sides = np.where(known == _UNKNOWN, by_group[first], known)
    return sides, int((first != np.arange(total)).sum())


def _look(picture: Picture) -> bytes:
    """Return the bytes of a picture's look; one that cannot be read is like no other."""
    data = f"{picture.image_id} has no picture".encode()
    if picture.size:
        with contextlib.suppress(Rejected):
            data = read_image(Location(picture.path, picture.offset, picture.size))
    return look_of(data).tobytes()
