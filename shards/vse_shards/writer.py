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


def member_header(name: str, size: int) -> bytes:
    """Return the header of a member as `tarfile` writes it, ten times as fast for short names.

    Args:
        name: name of the member, ASCII.
        size: size of the member in bytes.
    """
    if len(name) > _LONGEST or size > _LARGEST:
        return _header(name, size)
    digits, letters = b"%011o" % size, name.encode("ascii")
    checksum = b"%06o" % (_SUM + sum(letters) + sum(digits))
    parts = (letters.ljust(100, b"\0"), _EMPTY[100:124], digits, _EMPTY[135:148], checksum)
    return b"".join((*parts, _EMPTY[154:]))


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    return header.tobuf(tarfile.USTAR_FORMAT)


_EMPTY = _header("", 0)
_LONGEST, _LARGEST = 100, 8**11 - 1  # of a name and a size that need no extension
# The sum of a header's bytes, its own field as spaces, without the eleven digits of the size.
_SUM = int(_EMPTY[148:154], 8) - sum(_EMPTY[124:135])


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
            name = f"{key}.{extension}"
            self._write(member_header(name, len(data)))
            row.append(Member(extension, self._position, len(data), name))
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
