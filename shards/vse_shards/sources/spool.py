"""Images that a source has in its rows rather than in files, kept on disk while a build runs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from vse_shards.sources.base import Location

_REMEMBERED = 4096  # images; rows of one image stand near each other


_PREFIX = "vse-shards-"
_FOLDERS: set[str] = set()  # of this process


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder, in ``TMPDIR``, for files that end with the process."""
    folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
    _FOLDERS.add(folder.name)
    return folder


def kept_name(path: str) -> str | None:
    """Return the part of a path below ``TMPDIR`` if it lies in such a folder."""
    if not any(path.startswith(os.path.join(folder, "")) for folder in _FOLDERS):
        return None
    return path.removeprefix(os.path.join(tempfile.gettempdir(), ""))


class Spool:
    """A file of images, one after the other, that ends with the process.

    Rows of a table reach workers as paths and ranges of bytes. Tables are compressed, and shuffled
    rows cannot be read from them one by one.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._file: BinaryIO | None = None
        self._seen: OrderedDict[bytes, Location] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    @property
    def folder(self) -> str:
        """Folder of the file; ``TMPDIR`` chooses it."""
        return tempfile.gettempdir()

    def add(self, data: bytes) -> Location:
        """Keep the bytes of an image, and return their location; equal bytes have one location.

        Raises:
            OSError: there is no room.
        """
        digest = hashlib.sha256(data).digest()
        if digest in self._seen:
            self._seen.move_to_end(digest)
            return self._seen[digest]
        if self._file is None or self._folder is None:
            self._folder = new_folder()
            self._file = open(Path(self._folder.name) / "images", "wb", buffering=0)  # noqa: SIM115
        location = Location(os.path.join(self._folder.name, "images"), self._size, len(data))
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._size += len(data)
        self._seen[digest] = location
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return location
