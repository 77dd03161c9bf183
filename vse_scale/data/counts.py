"""Captions of each image as a column, and the pairs that they number."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_GROUP = 256  # images whose captions are added up for a look-up
_CHUNK = 1 << 22  # images that are read at a time
_LOOKED_UP = 1 << 10  # pairs that are looked up at a time


class CaptionCounts:
    """The number of captions of each image, and of the pairs before it.

    Pairs are numbered image by image. The column is not copied: a sum for every 256 images is all
    that is held beside it, 1/32 of a byte an image.

    Args:
        captions_per_sample: (I,) number of captions of each image, of any integer type.
    """

    def __init__(self, captions_per_sample: npt.ArrayLike) -> None:
        counts = np.asarray(captions_per_sample)
        self._counts = counts if counts.dtype.kind in "iu" else counts.astype(np.int64)
        self._file = _MappedFile.of(captions_per_sample)
        # A fifth of the time that sums of 64 bits take; no sum of a group is larger.
        small = self._counts.dtype in (np.uint8, np.uint16)
        self._sum_type: type[np.integer] = np.uint32 if small else np.int64
        self._first = self._sums()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._counts)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return int(self._first[-1])

    def of(self, images: Indices) -> Indices:
        """Return the number of captions (N,) int64 of images (N,)."""
        return self._counts[images].astype(np.int64)

    def find(self, pairs: Indices) -> tuple[Indices, Indices]:
        """Return image and caption, both (N,) int64, of each pair (N,)."""
        images, captions = np.empty_like(pairs), np.empty_like(pairs)
        for start in range(0, len(pairs), _LOOKED_UP):
            part = slice(start, start + _LOOKED_UP)
            # From the right: groups without captions start at the same pair as the one after them.
            group = np.searchsorted(self._first, pairs[part], side="right") - 1
            rest = (pairs[part] - self._first[group]).astype(self._sum_type)
            ends: npt.NDArray[np.integer] = np.cumsum(
                self._captions(group), axis=1, dtype=self._sum_type
            )
            within = (ends <= rest[:, None]).sum(axis=1)
            before = ends[np.arange(len(within)), within - 1]
            images[part] = group * _GROUP + within
            captions[part] = rest - np.where(within > 0, before, 0)
        return images, captions

    def before(self, images: Indices) -> Indices:
        """Return the number of pairs (N,) int64 before each image (N,); its first pair."""
        found = np.zeros(len(images), np.int64)
        for start in range(0, len(images), _LOOKED_UP):
            group, within = np.divmod(images[start : start + _LOOKED_UP], _GROUP)
            earlier = np.arange(_GROUP) < within[:, None]
            sums = np.where(earlier, self._captions(group), 0).sum(axis=1, dtype=self._sum_type)
            found[start : start + _LOOKED_UP] = self._first[group] + sums
        return found

    def fewer(self, least: int) -> tuple[int, int, int]:
        """Return how many images have fewer captions than ``least``, the first, and the fewest."""
        number, first, fewest = 0, -1, least
        for start in range(0, len(self._counts), _CHUNK):
            chunk = self._read(start, start + _CHUNK)
            few = np.flatnonzero(chunk < least)
            if len(few):
                first = start + int(few[0]) if number == 0 else first
                number, fewest = number + len(few), min(fewest, int(chunk.min()))
        return number, first, fewest

    def _sums(self) -> Indices:
        """Return the pairs before each group of images, and the number of all pairs."""
        counts = self._counts
        sums = np.zeros(-(-len(counts) // _GROUP) + 1, np.int64)
        whole = len(counts) // _GROUP
        for start in range(0, whole, _CHUNK // _GROUP):
            end = min(whole, start + _CHUNK // _GROUP)
            # A view that repeats one entry is summed ten times as fast once it is copied.
            chunk = np.ascontiguousarray(self._read(start * _GROUP, end * _GROUP))
            groups = chunk.reshape(-1, _GROUP)
            sums[start + 1 : end + 1] = groups.sum(axis=1, dtype=self._sum_type)
        if whole * _GROUP < len(counts):
            sums[-1] = counts[whole * _GROUP :].sum(dtype=np.int64)
        np.cumsum(sums, out=sums)
        return sums

    def _captions(self, groups: Indices) -> npt.NDArray[np.integer]:
        """Return the captions (G, 256) of the images of each group, 0 beyond the last."""
        places = groups[:, None] * _GROUP + np.arange(_GROUP)
        if self._file is None:
            counts: npt.NDArray[np.integer] = self._counts[np.minimum(places, len(self) - 1)]
        else:
            counts = self._file.rows(groups, _GROUP)
        counts[places >= len(self._counts)] = 0
        return counts

    def _read(self, start: int, end: int) -> npt.NDArray[np.integer]:
        """Return the captions of the images from ``start`` to before ``end``."""
        if self._file is None:
            return self._counts[start:end]
        return self._file.read(start, min(end, len(self._counts)))


class _MappedFile:
    """The file behind a mapped array, read without its mapping.

    A look-up through the mapping would map as much as 2 MB around it, which counts as this
    process's memory.

    Args:
        path: of the file.
        start: offset of the array's first entry in bytes.
        dtype: of an entry.
    """

    def __init__(self, path: str | os.PathLike[str], start: int, dtype: np.dtype[Any]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 -- open as long as this object
        self._start, self._dtype = start, dtype

    @classmethod
    def of(cls, array: object) -> _MappedFile | None:
        """Return the file behind a column; None where the array is or may be another's content."""
        if not isinstance(array, np.memmap) or array.mode != "r" or array.ndim != 1:
            return None
        base: object = array
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, mmap.mmap) or not array.flags.c_contiguous or not array.filename:
            return None
        # A view has the offset of the whole: the mapping begins at a multiple of the granularity.
        within = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
        mapped_from = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        with suppress(OSError):  # the mapping outlives a file that was removed
            return cls(array.filename, mapped_from + within, array.dtype)
        return None

    def read(self, start: int, end: int) -> npt.NDArray[np.integer]:
        """Return the entries from ``start`` to before ``end``."""
        return np.frombuffer(self._bytes(start, end), self._dtype)

    def rows(self, groups: Indices, size: int) -> npt.NDArray[np.integer]:
        """Return ``size`` entries of each group, (G, size), 0 beyond the end of the file."""
        length = size * self._dtype.itemsize
        rows = (self._bytes(g * size, (g + 1) * size) for g in groups.tolist())
        joined = bytearray().join(
            row.ljust(length, b"\0") for row in rows
        )  # writable, unlike bytes
        return np.frombuffer(joined, self._dtype).reshape(-1, size)

    def _bytes(self, start: int, end: int) -> bytes:
        size = self._dtype.itemsize
        return os.pread(self._file.fileno(), (end - start) * size, self._start + start * size)
