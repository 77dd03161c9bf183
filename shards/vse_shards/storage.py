"""Access to files on this machine, or at any URL that fsspec opens."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

from vse_shards.errors import SourceError


def is_url(path: str) -> bool:
    """Return whether a path is a URL for fsspec, such as ``s3://bucket/images``."""
    return "://" in path


@contextmanager
def remote_access(path: str) -> Iterator[None]:
    """Convert any exception of fsspec to an OSError: each backend raises its own types.

    Raises:
        OSError: with the path, and the backend's message on one line.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        said = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        number = (isinstance(error, OSError) and error.errno) or errno.EIO
        raise OSError(number, " ".join(said.split()), path) from error


def lives_in_memory(path: str) -> bool:
    """Return whether ``path`` is visible to this process only."""
    return path.startswith("memory://")


def join(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``; an absolute name or URL is returned unchanged."""
    if is_url(name) or os.path.isabs(name):
        return name
    return posixpath.join(folder, name)


def parent(path: str) -> str:
    """Return the folder of a path or URL."""
    return posixpath.dirname(path)


def base_name(path: str) -> str:
    """Return the last part of a path or URL."""
    return posixpath.basename(path.rstrip("/"))


def is_file(path: str) -> bool:
    """Return whether ``path`` is a file, or a link to one."""
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
    with remote_access(path):
        filesystem, inner = url_to_fs(path)
        try:
            return str(filesystem.info(inner)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None


def file_size(path: str) -> int:
    """Return the size of a regular file in bytes, or -1 if there is none.

    A remote folder is listed once, until `forget_listings`.
    """
    if is_url(path):
        return _remote_sizes(parent(path)).get(base_name(path), -1)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1
    # Pipes and devices have sizes too, but reading them may never end.
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def open_binary(path: str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_url(path):
        return open(path, "rb")
    with remote_access(path):
        return cast(BinaryIO, fsspec.open(path, "rb").open())


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Read a file, or ``size`` bytes of it from ``offset``.

    Raises:
        OSError: the file cannot be read.
    """
    if is_url(path):
        with remote_access(path):
            filesystem, inner = url_to_fs(path)
            end = None if size is None else offset + size
            return cast(bytes, filesystem.cat_file(inner, start=offset or None, end=end))
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


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
        with remote_access(folder):
            filesystem, inner = url_to_fs(folder)
            found = filesystem.find(inner)
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
        relative = os.path.relpath(base, folder)
        names += [name if relative == "." else f"{relative}/{name}" for name in files]
    yield from sorted(names)


def require_input(path: str, *, folder: bool = False) -> str:
    """Return ``path`` as an absolute path or URL, after checking that it exists.

    Raises:
        SourceError: there is no such file (or folder).
    """
    kind = "folder" if folder else "file"
    if not is_url(path):
        path = str(Path(path).absolute())
    try:
        there = is_folder(path) if folder else is_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{path}: cannot be opened: {reason}") from error
    if not there:
        other = is_file(path) if folder else is_folder(path)
        what = f"is not a {kind}" if other else f"no such {kind}"
        raise SourceError(f"{path}: {what}; check the path")
    return path


def forget_listings() -> None:
    """Drop the cached listings of remote folders."""
    _remote_sizes.cache_clear()


@lru_cache(maxsize=64)
def _remote_sizes(folder: str) -> dict[str, int]:
    with remote_access(folder):
        filesystem, inner = url_to_fs(folder)
        entries: list[Any] = filesystem.ls(inner, detail=True) if filesystem.exists(inner) else []
    return {base_name(e["name"]): e["size"] or 0 for e in entries if e["type"] != "directory"}
