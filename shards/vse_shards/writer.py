"""Writer of tar shards, deterministic to the byte, and their index, in one pass."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from vse_shards.index import Member, format_index

_BLOCK = 512
_RECORD = 20 * _BLOCK  # tar pads an archive to a multiple of this
_KEY = re.compile(r"[0-9A-Za-z_-]+")
_EXTENSION = re.compile(r"[0-9a-z]+")


@dataclass(frozen=True)
class WrittenShard:
    """Samples, size in bytes, digest and index of a finished shard."""

    samples: int
    bytes: int
    sha256: str
    index: str


class ShardWriter:
    """Writes samples to a tar (ustar, mtime 0, uid and gid 0) and collects its index.

    The bytes depend on the samples alone, not on the clock, the user or the file system. The
    sha256 is computed while writing; nothing is read back.

    Args:
        file: an open binary file, written from its start; the caller closes it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self._digest = hashlib.sha256()
        self._samples: list[list[Member]] = []

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: letters, digits, ``-`` and ``_``. No dots: readers take everything after the first
                dot as the extension.
            members: data by extension, written in this order.

        Raises:
            ValueError: the key, an extension or the set of members is not allowed.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r} has characters other than letters, digits, - and _")
        if not members:
            raise ValueError(f"sample {key!r} has no members")
        row = []
        for extension, data in members.items():
            if not _EXTENSION.fullmatch(extension):
                raise ValueError(f"extension {extension!r} is not lower-case letters and digits")
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = len(data)
            header.mode = 0o644
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            row.append(Member(extension, self._position, len(data), header.name))
            self._write(data)
            self._write(bytes(-len(data) % _BLOCK))
        self._samples.append(row)

    def finish(self) -> WrittenShard:
        """Write the end of the archive; return the shard's size, digest and index."""
        self._write(bytes(2 * _BLOCK))  # the end of an archive, by definition of the format
        self._write(bytes(-self._position % _RECORD))
        return WrittenShard(
            samples=len(self._samples),
            bytes=self._position,
            sha256=self._digest.hexdigest(),
            index=format_index(self._samples),
        )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)
