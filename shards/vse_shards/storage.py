"""Access to files on this machine, or at any URL that fsspec opens."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from vse_shards import reach
from vse_shards.errors import SourceError
from vse_shards.masking import masked
from vse_shards.plain_files import open_plain
from vse_shards.remote import attempt, open_filesystem
from vse_shards.remote import is_url as is_url
from vse_shards.system import slashed

MOST_WEB_BYTES = 1 << 30  # of a file that is read whole: a web server may say no size, and not end
_BUFFER = 8 << 20  # bytes of one request of a file that is read in order


def lives_in_memory(path: str) -> bool:
    """Return whether ``path`` is visible to this process only."""
    return path.startswith("memory://")


def join(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``, as `reach.inside` does.

    A file that a row names is found by `locate`, which also follows its links.
    """
    return reach.inside(folder, name)


def locate(folder: str, name: str) -> str:
    """Return the path of a file that a row names, as `reach.locate` does."""
    return reach.locate(folder, name)


def locate_file(folder: str, name: str) -> tuple[str, int]:
    """Return the path of a file that a row names, as `locate`, and its size, as `file_size`.

    Args:
        folder: folder that names are relative to.
        name: no URL.
    """
    path = reach.inside(folder, name)
    if not is_url(path) and not reach.is_outside(path):
        try:
            status = os.lstat(path)
            # A regular file is no link: one call of the system is enough for nearly every row.
            if stat.S_ISREG(status.st_mode) and reach.holds(folder, os.path.dirname(path)):
                return path, status.st_size
        except (OSError, ValueError):
            pass
    path = reach.locate(folder, name)
    return path, -1 if reach.is_outside(path) else file_size(path)


def parent(path: str) -> str:
    """Return the folder of a path or URL."""
    if is_url(path):
        protocol, _, rest = path.partition("://")
        return f"{protocol}://{posixpath.dirname(rest)}"
    return posixpath.dirname(path)


def base_name(path: str) -> str:
    """Return the last part of a path or URL."""
    return posixpath.basename(path.rstrip("/"))


def is_file(path: str) -> bool:
    """Return whether ``path`` is a file, or a link to one, and not outside what may be read."""
    if reach.is_outside(path):
        return False
    if is_url(path):
        return _remote_kind(path) == "file"
    return file_size(path) >= 0


def is_folder(path: str) -> bool:
    """Return whether ``path`` is a folder."""
    if is_url(path):
        return _remote_kind(path) == "directory"
    return os.path.isdir(path)


def _remote_kind(path: str) -> str | None:
    # Not fsspec's isfile: it answers every error, denied access too, with False.
    filesystem, inner = open_filesystem(path)
    try:
        return str(attempt(path, lambda: filesystem.info(inner))["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def file_size(path: str) -> int:
    """Return the size of a regular file in bytes, or -1 if there is none.

    A remote folder is listed once, until `forget_listings`.

    Raises:
        StorageError: the storage does not answer, or denies access.
    """
    if reach.is_web(path):
        return _web_size(path)  # a web server lists no sizes, and often nothing
    if is_url(path):
        return _remote_sizes(parent(path)).get(base_name(path), -1)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1
    # Pipes and devices have sizes too, but reading them may never end.
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _web_size(url: str) -> int:
    filesystem, inner = open_filesystem(url)
    try:
        size = attempt(url, lambda: filesystem.info(inner)).get("size")
    except FileNotFoundError:
        return -1
    return len(read_bytes(url)) if size is None else int(size)


def open_binary(path: str, buffer: int = _BUFFER) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: path or URL.
        buffer: bytes of one request of a remote file.

    Raises:
        OSError: the file cannot be read.
        StorageError: the storage does not answer, or denies access; also while the file is read.
    """
    if not is_url(path):
        return open_plain(path)
    filesystem, inner = open_filesystem(path)
    size = attempt(path, lambda: filesystem.info(inner)).get("size")
    if size is None:
        return io.BytesIO(read_bytes(path))
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(path, int(size)), buffer))


def open_stream(path: str) -> BinaryIO:
    """Open a file to be read once from its start; no more is kept in memory than is asked for.

    A web server may send more than it says; a request that fails while it is read raises its own
    error.

    Raises:
        OSError, StorageError: as for `open_binary`.
    """
    if not reach.is_web(path):
        return open_binary(path)
    filesystem, inner = open_filesystem(path)
    return cast(BinaryIO, filesystem.open(inner, "rb", block_size=0))


def read_limited(path: str, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        OSError: the file cannot be read, or is longer.
        StorageError: as for `read_bytes`.
    """

    def read() -> bytes:
        blocks, size = [], 0
        with open_stream(path) as file:
            while size <= limit and (block := file.read(min(_BUFFER, limit + 1 - size))):
                blocks.append(block)
                size += len(block)
        return b"".join(blocks)

    data = attempt(path, read) if is_url(path) else read()
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit:,} bytes", masked(path))
    return data


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Read a file, or ``size`` bytes of it from ``offset``.

    Raises:
        OSError: the file cannot be read.
        StorageError: the storage does not answer, or denies access, or sends fewer bytes.
        SourceError: a web server goes on sending.
    """
    if not is_url(path):
        with open_plain(path) as file:
            file.seek(offset)
            return file.read() if size is None else file.read(size)
    filesystem, inner = open_filesystem(path)
    if size is None and not offset and reach.is_web(path):
        return attempt(path, lambda: _read_web(path, filesystem, inner))
    end = None if size is None else offset + size

    def read() -> bytes:
        data: bytes = filesystem.cat_file(inner, start=offset or None, end=end)
        if size is not None and len(data) > size:
            data = data[offset:end]  # of a server that sends the whole file whatever is asked
        if size is not None and len(data) != size:
            raise OSError(errno.EIO, f"{len(data):,} of {size:,} bytes arrived")
        return data

    return attempt(path, read) if size != 0 else b""


def _read_web(path: str, filesystem: Any, inner: str) -> bytes:
    """Read a file whose server may say no size, and may never end."""
    parts, total = [], 0
    # Of block size 0 it is a stream, and with a size given nobody asks for it.
    with filesystem.open(inner, block_size=0, size=1) as stream:
        while block := stream.read(_BUFFER):
            parts.append(block)
            if (total := total + len(block)) > MOST_WEB_BYTES:
                raise SourceError(
                    f"{masked(path):.200}: more than {MOST_WEB_BYTES >> 20} MB have come, and no "
                    "end; download the file, and give its path"
                )
    return b"".join(parts)


class _RemoteFile(io.RawIOBase):
    """A remote file as ranges of bytes, each a request of its own that may be tried again."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size, self._position = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        if wanted:
            buffer[:wanted] = read_bytes(self._path, self._position, wanted)
            self._position += wanted
        return wanted


def sha256_of(file: BinaryIO) -> str:
    """Return the digest of the rest of an open file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def walk(folder: str) -> Iterator[str]:
    """Yield the paths of all files under ``folder``, relative to it, in sorted order.

    Links to folders are followed, each folder once.
    """
    if is_url(folder):
        filesystem, inner = open_filesystem(folder)
        found = attempt(folder, lambda: filesystem.find(inner))
        start = len(inner.rstrip("/")) + 1
        yield from sorted(path[start:] for path in found)
        return
    seen: set[tuple[int, int]] = set()
    names: list[str] = []
    for base, folders, files in os.walk(folder, followlinks=True):
        identity = os.stat(base)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders.sort()
        relative = slashed(os.path.relpath(base, folder))
        names += [name if relative == "." else f"{relative}/{name}" for name in files]
    yield from sorted(names)


def require_input(path: str, *, folder: bool = False) -> str:
    """Return ``path`` as an absolute path or URL, after checking that it exists.

    Raises:
        SourceError: there is no such file (or folder).
    """
    kind = "folder" if folder else "file"
    if not is_url(path):
        path = slashed(str(Path(path).absolute()))
    try:
        there = is_folder(path) if folder else is_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{masked(path)}: cannot be opened: {reason}") from error
    if not there:
        other = is_file(path) if folder else is_folder(path)
        what = f"is not a {kind}" if other else f"no such {kind}"
        raise SourceError(f"{masked(path)}: {what}; check the path")
    return path


def forget_listings() -> None:
    """Drop the cached listings of remote folders, and the links of local ones."""
    _remote_sizes.cache_clear()
    reach.forget_folders()


@lru_cache(maxsize=64)
def _remote_sizes(folder: str) -> dict[str, int]:
    filesystem, inner = open_filesystem(folder)
    try:
        entries: list[Any] = attempt(folder, lambda: filesystem.ls(inner, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {base_name(e["name"]): e["size"] or 0 for e in entries if e["type"] != "directory"}
