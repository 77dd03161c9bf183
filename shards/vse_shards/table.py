"""Binary index of a shard: offset and size of each member, as numbers that need no parsing.

The file ``<stem>.idx.npy`` stands beside the text for DALI and says the same of the members that
training reads: an array (samples, 3, 2) of unsigned integers, offset and size in bytes of the
members ``EXTENSIONS``, 0 and 0 without one. A number takes 4 bytes, 8 in a tar of 4 GiB and more.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vse_shards.errors import DatasetError
from vse_shards.index import Index
from vse_shards.npy import parse_npy

EXTENSIONS = ("jpg", "npy", "json")
MEND = "run vse-shards upgrade"  # which writes it anew from the text
_NARROW = 1 << 32  # bytes of a tar whose places take four bytes each


def table_name(stem: str) -> str:
    """Return the file name of the binary index of a shard."""
    return f"{stem}.idx.npy"


def table_of(index: Index) -> bytes:
    """Return the binary index of a shard, the same bytes for the same text."""
    table = np.stack([index.places(extension) for extension in EXTENSIONS], axis=1)
    table[table[:, :, 0] < 0] = 0  # no member begins at 0, where its header is
    narrow = int(_ends(table).max(initial=0)) < _NARROW
    return npy_bytes(table.astype(np.uint32 if narrow else np.uint64))


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    """Return the bytes of an array's ``.npy`` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


class TableIndex(Index):
    """Index of a shard from its binary index.

    Args:
        path: named in errors.
        keys: reads the keys of the samples, which training does not need.
        table: (samples, 3, 2) as in the file.
    """

    def __init__(
        self,
        path: Path | str,
        keys: Callable[[], Sequence[str]],
        table: NDArray[np.unsignedinteger],
    ) -> None:
        super().__init__(path, _Keys(len(table), keys), {})
        present = [n for n in range(len(EXTENSIONS)) if table[:, n, 0].any()]
        # A copy of those alone: it is kept as long as the index.
        self._tables = {EXTENSIONS[n]: np.ascontiguousarray(table[:, n]) for n in present}

    @property
    def extensions(self) -> list[str]:
        """Extensions that occur, of `EXTENSIONS`."""
        return list(self._tables)

    @property
    def end(self) -> int:
        """Byte of the tar after the last member, 0 without one."""
        ends = (_ends(table[None]).max(initial=0) for table in self._tables.values())
        return max(map(int, ends), default=0)

    def places(self, extension: str) -> NDArray[np.int64]:
        """Return offset and size in bytes of each sample's member, (N, 2); -1 if it has none."""
        found = self._tables.get(extension)
        if found is None:
            return np.full((len(self), 2), -1, np.int64)
        places = found.astype(np.int64)
        places[places[:, 0] == 0] = -1
        return places

    def place(self, row: int, extension: str) -> tuple[int, int]:
        """Return offset and size in bytes of one member of a sample; (-1, -1) if it has none."""
        found = self._tables.get(extension)
        offset, size = (0, 0) if found is None else found[row].tolist()
        return (offset, size) if offset else (-1, -1)

    def has(self, extension: str) -> NDArray[np.bool_]:
        """Return whether each sample has a member with this extension, (N,) bool."""
        return self.places(extension)[:, 0] >= 0

    def _column(self, extension: str) -> NDArray[np.int64]:
        self._columns[extension] = self.places(extension)
        try:
            return super()._column(extension)
        finally:
            del self._columns[extension]


def parse_table(
    data: bytes,
    path: Path | str,
    *,
    sha256: str | None,
    samples: int,
    size: int,
    keys: Callable[[], Sequence[str]],
) -> Index:
    """Read a binary index.

    Args:
        data: bytes of the file.
        path: named in errors.
        sha256: digest that it must have; None where it was compared before.
        samples: of the shard.
        size: of the tar in bytes.
        keys: reads the keys of the samples, which training does not need.

    Raises:
        DatasetError: it is another file, or none of this shard.
    """
    digest = sha256 and hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise DatasetError(
            f"{path}: has sha256 {str(digest)[:12]}, the manifest says {str(sha256)[:12]}; copy "
            f"the file again, or {MEND}"
        )
    try:
        table = parse_npy(data)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}; {MEND}") from None
    if table.shape != (samples, len(EXTENSIONS), 2) or table.dtype not in (np.uint32, np.uint64):
        raise DatasetError(
            f"{path}: holds {table.dtype} {table.shape}, not offset and size of {samples:,} "
            f"samples; {MEND}"
        )
    # The offset by itself first: the sum of two could leave 64 bits.
    if int(table.max(initial=0)) > size or int(_ends(table).max(initial=0)) > size:
        raise DatasetError(f"{path}: has a member beyond the {size:,} bytes of its tar; {MEND}")
    return TableIndex(path, keys, table)


def _ends(table: NDArray[Any]) -> NDArray[np.uint64]:
    ends: NDArray[np.uint64] = table.sum(axis=2, dtype=np.uint64)
    return ends


class _Keys(Sequence[str]):
    """Keys of a shard's samples, read when one is asked for."""

    def __init__(self, count: int, read: Callable[[], Sequence[str]]) -> None:
        self._count, self._read = count, read
        self._keys: Sequence[str] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        return self._all()[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def _all(self) -> Sequence[str]:
        if self._keys is None:
            self._keys = self._read()
        return self._keys
