"""Detection of images that occur more than once in a dataset, pixel for pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vse_shards.images import decode_strictly
from vse_shards.index import Index, parse_index
from vse_shards.info import parse_description
from vse_shards.output import OutputFolder
from vse_shards.progress import Progress
from vse_shards.storage import read_bytes

_DIGEST_CHARS = 16  # of the hexadecimal digest: 8 bytes an image: enough to select candidates


@dataclass(frozen=True)
class Occurrence:
    """One occurrence of an image."""

    split: str
    shard: str
    row: int
    image_id: str | int


class Digests:
    """Digests of all images, 8 bytes each, with their shards."""

    def __init__(self) -> None:
        self._shards: list[tuple[str, str]] = []
        self._blocks: list[NDArray[np.uint64]] = []

    def add(self, split: str, stem: str, digests: Sequence[str]) -> None:
        """Add the samples of one shard, in order; an empty digest means a sample without image."""
        self._shards.append((split, stem))
        numbers = (int(digest[:_DIGEST_CHARS] or "0", 16) for digest in digests)
        self._blocks.append(np.fromiter(numbers, np.uint64, len(digests)))

    def groups(self) -> Iterator[list[tuple[str, str, int]]]:
        """Yield the (split, stem, row) of every set of two or more images of equal digest."""
        if not self._blocks:
            return
        digests = np.concatenate(self._blocks)
        starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        self._blocks.clear()
        order = np.argsort(digests, kind="stable")
        digests = digests[order]
        # Positions whose digest equals the one before it; 0 is a sample without image.
        again = np.flatnonzero((digests[1:] == digests[:-1]) & (digests[1:] != 0)) + 1
        del digests
        for run in np.split(again, np.flatnonzero(np.diff(again) != 1) + 1):
            if not len(run):
                continue
            samples = order[run[0] - 1 : run[-1] + 1]
            blocks = np.searchsorted(starts, samples, side="right") - 1
            yield [
                (*self._shards[block], int(sample - starts[block]))
                for block, sample in zip(blocks, samples, strict=True)
            ]


def find_duplicates(out: OutputFolder, digests: Digests) -> list[list[Occurrence]]:
    """Return the sets of images that are equal pixel for pixel, each in order of appearance.

    Images of equal digest are read back and compared: a digest covers only part of the pixels.
    """
    shards = _Shards(out)
    found = []
    with Progress("comparing images of equal digest", None, "images") as progress:
        compared = 0
        for group in digests.groups():
            by_pixels: dict[bytes, list[tuple[str, str, int]]] = {}
            for split, stem, row in group:
                by_pixels.setdefault(shards.pixels(stem, row), []).append((split, stem, row))
                compared += 1
                progress.update(compared)
            for same in by_pixels.values():
                if len(same) > 1:
                    found.append([Occurrence(*at, shards.image_id(*at[1:])) for at in same])
    return found


class _Shards:
    """Reads single samples back from the shards just written."""

    def __init__(self, out: OutputFolder) -> None:
        self._out = out
        self._index = lru_cache(maxsize=64)(self._read_index)

    def pixels(self, stem: str, row: int) -> bytes:
        """Return a digest of all pixels of a stored image."""
        pixels = decode_strictly(self._member(stem, row, "jpg"))
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()

    def image_id(self, stem: str, row: int) -> str | int:
        """Return the id of a stored sample."""
        image_id: str | int = parse_description(self._member(stem, row, "json"))["image_id"]
        return image_id

    def _member(self, stem: str, row: int, extension: str) -> bytes:
        index = self._index(stem)
        offset, size = index.place(row, extension)
        return read_bytes(f"{self._out.path}/{stem}.tar", offset, size)

    def _read_index(self, stem: str) -> Index:
        text = self._out.read(f"{stem}.idx") or b""
        return parse_index(text, Path(f"{stem}.idx"))
