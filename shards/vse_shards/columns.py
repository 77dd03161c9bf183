"""Shards of a split as columns of numbers, one ``.npy`` file each: version 2 of the format.

The manifest of version 1 lists every shard, which takes a minute and gigabytes at 1e8 pairs. That
of version 2 names four files for each split, with their sizes and digests:

names: (shards, longest) uint8, the file names of the tars in UTF-8, filled up with zeros.
sizes: (shards, 6) int64, see `SIZES`.
digests: (shards, 3, 32) uint8, sha256 of the tar, its index and its binary index.
captions: (images,) unsigned, the captions of each image.

A file's name has the first digits of its digest, so new columns stand beside those that a manifest
names until that is replaced.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vse_shards.errors import DatasetError
from vse_shards.npy import open_npy
from vse_shards.plain_files import open_plain
from vse_shards.records import ShardRecord, Split, number, run_length_code, typed
from vse_shards.storage import sha256_of
from vse_shards.table import npy_bytes, table_name

NAMES = ("names", "sizes", "digests", "captions")
# Images, captions, bytes of the tar; images with a .jpg, with an .npy, bytes of the largest .npy.
SIZES = ("samples", "pairs", "bytes", "jpg", "npy", "largest_npy")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
COLUMN_FILE = re.compile(rf"{_SPLIT_NAME.pattern}\.({'|'.join(NAMES)})\.[0-9a-f]{{16}}\.npy")
MEND_COLUMN = "run the vse-shards command that wrote the dataset again, or copy the file again"
_BLOCK = 1 << 22  # captions that are added up at a time


@dataclass(frozen=True)
class Table:
    """A binary index: its digest, and the last three of `SIZES`."""

    sha256: str
    sizes: tuple[int, int, int]


@dataclass(frozen=True)
class TabledRecord(ShardRecord):
    """Record of a shard that has a binary index."""

    table: Table

    @property
    def table_name(self) -> str:
        """File name of the binary index."""
        return table_name(self.stem)


@dataclass(frozen=True)
class ColumnFile:
    """A column's file: its name, size in bytes and digest."""

    name: str
    bytes: int
    sha256: str


# Opens the file of a column, compared with its digest.
Opener = Callable[[ColumnFile], NDArray[Any]]


def open_column(path: Path, column: ColumnFile) -> NDArray[Any]:
    """Map a column, read-only, after a comparison of all its bytes with the digest.

    Raises:
        DatasetError: it is not there, is another file, or none of numbers.
    """
    try:
        with open_plain(path) as file:
            digest = sha256_of(file)
        if digest != column.sha256:
            raise ValueError(f"has sha256 {digest[:12]}, the manifest says {column.sha256[:12]}")
        return open_npy(path)
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: is not there; where rows were appended to the dataset meanwhile, start "
            f"again; else {MEND_COLUMN}"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; {MEND_COLUMN}") from error
    except ValueError as error:
        raise DatasetError(f"{path}: {error}; {MEND_COLUMN}") from None


class Columns(Sequence[TabledRecord]):
    """Records of the shards of a split, each made of the columns when it is asked for.

    Args:
        split: name of the split, for errors.
        arrays: the columns by name.

    Attributes:
        names, sizes, digests, captions: the columns.

    Raises:
        ValueError: the arrays are not the columns of a split.
    """

    def __init__(self, split: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.names, self.sizes, self.digests, self.captions = (arrays[name] for name in NAMES)
        shards = len(self.sizes) if self.sizes.ndim else 0
        self._split = split
        fits = {
            "names": self.names.ndim == 2
            and self.names.dtype == np.uint8
            and len(self.names) == shards
            and self.names.shape[1] <= 255,
            "sizes": self.sizes.shape == (shards, len(SIZES)) and self.sizes.dtype == np.int64,
            "digests": self.digests.shape == (shards, 3, 32) and self.digests.dtype == np.uint8,
            "captions": self.captions.ndim == 1 and self.captions.dtype.kind == "u",
        }
        wrong = next((name for name in NAMES if not fits[name]), None)
        if wrong is not None:
            raise ValueError(f"column {wrong} holds {arrays[wrong].dtype} {arrays[wrong].shape}")
        if shards and not 0 <= int(self.sizes.min()) <= int(self.sizes.max()) < 1 << 53:
            raise ValueError("column sizes holds a number below 0 or above 2**53")
        self._first = np.concatenate([[0], np.cumsum(self.sizes[:, 0])]).astype(np.int64)
        if int(self._first[-1]) != len(self.captions):
            raise ValueError(
                f"column captions has {len(self.captions):,} images, column sizes "
                f"{int(self._first[-1]):,}"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, row: int) -> TabledRecord: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[TabledRecord]: ...
    def __getitem__(self, row: int | slice) -> TabledRecord | Sequence[TabledRecord]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        samples, pairs, size, *rest = self.sizes[row].tolist()
        sha256, index_sha256, table_sha256 = (bytes(one).hex() for one in self.digests[row])
        counts = np.asarray(self.captions[self._first[row] : self._first[row + 1]])
        record = TabledRecord(
            self.name(row), samples, pairs, size, sha256, index_sha256,
            run_length_code(counts), Table(table_sha256, tuple(rest)),
        )  # fmt: skip
        try:
            record.check()
        except ValueError as error:
            raise _malformed(self._split, error) from None
        return record

    def name(self, row: int) -> str:
        """Return the file name of a shard's tar.

        Raises:
            DatasetError: it is none.
        """
        try:
            name = bytes(self.names[row]).rstrip(b"\0").decode()
            if "/" in name or not name.endswith(".tar") or not name.isprintable():
                raise ValueError(f"shard name {name[:80]!r} is not the file name of a tar")
        except ValueError as error:
            raise _malformed(self._split, error) from None
        return name


class ColumnSplit(Split):
    """Shards of a split of version 2; its columns are opened when they are first asked for.

    Args:
        name: name of the split.
        entry: its entry of the manifest.
        opener: opens the file of a column.

    Raises:
        KeyError, TypeError, ValueError: the entry is malformed.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], opener: Opener) -> None:
        if not _SPLIT_NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name of a split")
        numbers = {key: number(entry, key) for key in ("images", "pairs", "bytes")}
        self._name, self._opener, self._numbers = name, opener, numbers
        self._count = number(entry, "shards")
        self._files = {}
        for column in NAMES:
            stated = entry["columns"][column]
            sha256 = typed(stated, "sha256", str)
            if not re.fullmatch(r"[0-9a-f]{64}", sha256):
                raise ValueError(f"column {column} has no sha256")
            file = column_name(name, column, sha256)
            self._files[column] = ColumnFile(file, number(stated, "bytes"), sha256)

    @property
    def images(self) -> int:
        """Number of images (samples)."""
        return self._numbers["images"]

    @property
    def pairs(self) -> int:
        """Number of (image, caption) pairs."""
        return self._numbers["pairs"]

    @functools.cached_property
    def shards(self) -> Columns:
        """Records of the shards, in order.

        Raises:
            DatasetError: a column cannot be read, or does not agree with the manifest.
        """
        arrays = {name: self._opener(file) for name, file in self._files.items()}
        try:
            columns = Columns(self._name, arrays)
            totals = columns.sizes[:, :3].sum(axis=0).tolist()
            found = dict(zip(("images", "pairs", "bytes"), totals, strict=True))
            captions = _total(columns.captions)
            if (len(columns), found) != (self._count, self._numbers) or captions != self.pairs:
                raise ValueError(
                    f"{len(columns):,} shards add up to {found}, {captions:,} captions; the "
                    f"manifest says {self._count:,} shards, {self._numbers}"
                )
        except ValueError as error:
            raise _malformed(self._name, error) from None
        return columns

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of each tar."""
        columns = self.shards
        return ((columns.name(row), size) for row, size in enumerate(columns.sizes[:, 2].tolist()))

    def samples(self) -> NDArray[np.int64]:
        """Return the images of each shard, (shards,) int64."""
        return np.array(self.shards.sizes[:, 0])

    def digests(self) -> list[str]:
        """Return the sha256 of each tar."""
        return [bytes(digest).hex() for digest in self.shards.digests[:, 0]]

    def captions_per_sample(self) -> NDArray[np.integer]:
        """Return the captions of each image, (images,), the mapped column."""
        return self.shards.captions

    def holding(self, extension: str) -> int:
        """Return how many images have a member ``jpg`` or ``npy``."""
        return int(self.shards.sizes[:, SIZES.index(extension)].sum())

    def largest_npy(self) -> int:
        """Return the size in bytes of the largest member ``npy``."""
        return int(self.shards.sizes[:, SIZES.index("largest_npy")].max(initial=0))

    def column_files(self) -> Iterator[ColumnFile]:
        """Yield the files of the columns."""
        yield from self._files.values()

    def stated(self) -> dict[str, Any]:
        """Return the entry of a manifest of version 2."""
        columns = {
            name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in self._files.items()
        }
        return {**self._numbers, "shards": self._count, "columns": columns}


def column_name(split: str, column: str, sha256: str) -> str:
    """Return the file name of a column."""
    return f"{split}.{column}.{sha256[:16]}.npy"


def columns_of(split: Split, tables: Sequence[Table]) -> dict[str, bytes]:
    """Return the bytes of the columns of a split.

    Args:
        split: of any version.
        tables: binary index of each shard.
    """
    names, sizes, digests = [], [], []
    for shard, table in zip(split.shards, tables, strict=True):
        names.append(shard.name.encode())
        sizes.append((shard.samples, shard.pairs, shard.bytes, *table.sizes))
        digests.append(bytes.fromhex(shard.sha256 + shard.index_sha256 + table.sha256))
    longest = max(map(len, names), default=0)
    arrays: dict[str, NDArray[Any]] = {
        "names": _bytes_array([name.ljust(longest, b"\0") for name in names], longest),
        "sizes": np.array(sizes, np.int64).reshape(-1, len(SIZES)),
        "digests": _bytes_array(digests, 3, 32),
        "captions": split.captions_per_sample(),
    }
    return {name: npy_bytes(arrays[name]) for name in NAMES}


def entry_of(split: Split, columns: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the entry of a manifest of version 2 for a split with these columns."""
    return {
        "images": split.images,
        "pairs": split.pairs,
        "bytes": sum(size for _, size in split.files()),
        "shards": len(split.shards),
        "columns": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in columns.items()
        },
    }


def _bytes_array(rows: list[bytes], *shape: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), *shape)


def _total(captions: NDArray[Any]) -> int:
    """Return the sum of a column; of a mapped one without its map, whose pages would stay."""
    total, file = 0, getattr(captions, "filename", None)
    for start in range(0, len(captions), _BLOCK):
        part = captions[start : start + _BLOCK]
        if file is not None:
            offset = captions.offset + start * captions.itemsize  # type: ignore[attr-defined]
            part = np.fromfile(file, captions.dtype, len(part), offset=offset)
        total += int(part.sum(dtype=np.uint64))
    return total


def _malformed(split: str, error: Exception) -> DatasetError:
    return DatasetError(f"columns of split {split}: malformed: {error}; copy the dataset again")
