"""Tar shards, deterministic to the byte, with their index written in the same pass."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from vse_shards.index import Member, format_index

_BLOCK = 512
_RECORD = 20 * _BLOCK  # what tar programs pad an archive to
_KEY = re.compile(r"[0-9A-Za-z_-]+")
_EXTENSION = re.compile(r"[0-9a-z]+")


@dataclass(frozen=True)
class WrittenShard:
    """What a closed shard came to: its size in bytes, its digest, and its index."""

    samples: int
    bytes: int
    sha256: str
    index: str


class ShardWriter:
    """Writes samples to a tar (ustar, mtime 0, uid and gid 0) and keeps its index.

    Neither the clock, the user nor the file system leave a trace, so the same samples give the
    same bytes. The tar's sha256 is taken while writing; nothing is read back.

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
            key: letters, digits, ``-`` and ``_``; a dot would move where readers cut the
                extension, so it is refused.
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
        """Write the end of the archive and give the shard's size, digest and index."""
        self._write(bytes(2 * _BLOCK))
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
