"""One state file that all ranks write at once, each the values that it holds.

So nobody holds the whole, and nothing is sent. The file must be on a disk that all ranks see. Its
bytes are those that the main rank would write alone; that it read them back, with the digest that
every writer gave of its own, shows that no two writers met in a block of the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_CHUNK = 1 << 24  # bytes that are written or read at once


@dataclass(frozen=True)
class Target:
    """A file of its full length, of which only the first bytes are written.

    Attributes:
        path: absolute, on the main rank's machine.
        inode: of the file, by which another machine knows that it sees the same.
        starts: place in the file of each tensor.
    """

    path: str
    inode: int
    starts: dict[str, int]

    @classmethod
    def made(cls, path: Path, head: bytes, starts: dict[str, int], length: int) -> Target:
        """Make the file, which must not be there.

        Raises:
            OSError: it cannot be made.
        """
        with path.open("xb") as file:
            file.write(head)
            file.truncate(length)
            return cls(os.path.abspath(path), os.fstat(file.fileno()).st_ino, starts)


@dataclass(frozen=True)
class Piece:
    """Bytes of the file that one rank wrote, and their CRC-32."""

    start: int
    length: int
    crc: int


def write_pieces(
    target: Target, held: Sequence[tuple[int, Tensor]], check: Callable[[], None]
) -> list[Piece] | None:
    """Write the values that this rank holds; return None where it does not see the file.

    Args:
        target: the file.
        held: contiguous values of the CPU, each with its place in the file.
        check: is called between two parts of the file, and may raise.

    Raises:
        OSError: they cannot be written.
    """
    if not held:
        return []
    try:
        file = open(target.path, "r+b")  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):
        return None
    with file:
        # A leftover of the same name, on a disk of this machine's own, is another file.
        if os.fstat(file.fileno()).st_ino != target.inode:
            return None
        pieces = []
        for start, values in held:
            data, crc = values.view(-1).view(torch.uint8).numpy().data, 0
            file.seek(start)
            for at in range(0, len(data), _CHUNK):
                check()
                crc = zlib.crc32(data[at : at + _CHUNK], crc)
                file.write(data[at : at + _CHUNK])
            pieces.append(Piece(start, len(data), crc))
        file.flush()
        os.fsync(file.fileno())
    return pieces


def sha256_of_pieces(
    path: Path, head: int, pieces: Iterable[Piece], check: Callable[[], None]
) -> str:
    """Return the sha256 of a file, all of whose pieces are as they were written.

    Args:
        path: of the file.
        head: length of what the main rank wrote before all pieces.
        pieces: of all ranks.
        check: is called between two parts of the file, and may raise.

    Raises:
        OSError: it cannot be read, or has other bytes than were written.
        RuntimeError: the pieces are not all of the file, once.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(head))
        for piece in sorted(pieces, key=lambda piece: piece.start):
            if file.tell() != piece.start:
                raise RuntimeError(f"the ranks do not hold byte {file.tell()} once between them")
            left, crc = piece.length, 0
            while left:
                check()
                data = file.read(min(left, _CHUNK))
                if not data:
                    break
                digest.update(data)
                left, crc = left - len(data), zlib.crc32(data, crc)
            if left or crc != piece.crc:
                raise OSError(errno.EIO, "the disk has other bytes than a rank wrote", str(path))
        if file.read(1):
            raise RuntimeError(f"the ranks do not hold byte {file.tell() - 1} once between them")
    return digest.hexdigest()
