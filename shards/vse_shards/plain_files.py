"""Bytes of a file that others wrote: of a regular file, and no more than a limit."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from vse_shards.system import READING_AT_ONCE

MOST_BYTES = 1 << 28  # of a file that is read whole

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class NotRegularError(OSError, ValueError):
    """A pipe, device or socket in the place of a file."""

    def __init__(self, kind: str, path: Path | str) -> None:
        super().__init__(errno.EINVAL, f"is {kind}, not a regular file", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def open_plain(path: Path | str) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises:
        OSError: it cannot be opened, or is of another kind, such as a pipe, whose reader may wait
            for ever.
    """
    # Without O_NONBLOCK the opening itself waits for a writer of the pipe.
    descriptor = os.open(path, READING_AT_ONCE)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotRegularError(_KINDS.get(stat.S_IFMT(mode), "no file"), path)


def read_plain(path: Path | str, most: int | None = MOST_BYTES) -> bytes:
    """Read a regular file whole.

    Args:
        path: of the file.
        most: bytes that it may have; None: any number.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it has more bytes.
    """
    with open_plain(path) as file:
        if most is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise ValueError(f"has {max(size, len(data)):,} bytes, limit {most:,}")
    return data
