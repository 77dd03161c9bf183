"""Compressed tars and zips, unpacked to files that end with the process.

Rows reach workers as paths and ranges of bytes, which a compressed file does not have.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.masking import masked
from vse_shards.notes import Notes, shown
from vse_shards.sources.spool import new_folder
from vse_shards.sources.tabular.files import FAULTS, HEAD, TableFile, compression, unpacked

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_BLOCK = 1 << 16  # bytes that are unpacked at once; of a torn file the last are lost


def stem_of(name: str) -> str:
    """Return the name of a tar without its suffix."""
    suffix = next((one for one in PACKED if name.lower().endswith(one)), None)
    return name[: -len(suffix)] if suffix else os.path.splitext(name)[0]


def is_tar_name(name: str) -> bool:
    """Return whether a file is taken for a tar, compressed or not: by its suffix, in any case."""
    return name.lower().endswith((".tar", *PACKED))


class Unpacked:
    """Files that are unpacked on first use, in ``TMPDIR``.

    Args:
        notes: told how many bytes they take.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tars: dict[str, tuple[str, str]] = {}
        self._bytes = 0

    def tar(self, path: str) -> tuple[str, str]:
        """Return the path of a plain tar, and why it ends before the compressed one, "" if not.

        A tar that is not compressed is read where it lies.

        Raises:
            SourceError: it is a zip, or there is no room.
            OSError: it cannot be read.
        """
        if path not in self._tars:
            # Most tars are plain: of a remote one no more than this is fetched twice.
            with storage.open_binary(path, HEAD) as raw:
                kind = compression(io.BufferedReader(cast(Any, raw), HEAD))
            if kind == "zip":
                raise SourceError(
                    f"{masked(path)}: is a zip, not a tar: read it with --source folder"
                )
            self._tars[path] = self._copied(path, kind) if kind else (path, "")
        return self._tars[path]

    def folder(self, path: str) -> str:
        """Return the folder of a zip's files.

        Raises:
            SourceError: it is damaged or encrypted, there is no room, or two files that differ
                have one name.
        """
        try:
            target = Path(self._new(path))
            with storage.open_binary(path) as file, zipfile.ZipFile(file) as archive:
                self._extract(archive, target, path)
        except FAULTS as error:
            said = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise SourceError(
                f"{masked(path)}: cannot be unpacked to {tempfile.gettempdir()} (TMPDIR chooses "
                f"another folder): {shown(said)}"
            ) from error
        return str(target)

    def _extract(self, archive: zipfile.ZipFile, target: Path, path: str) -> None:
        members = [member for member in archive.infolist() if not member.is_dir()]
        needed, free = sum(one.file_size for one in members), shutil.disk_usage(target.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"needs {needed:,} bytes, and {free:,} are free")
        written: dict[tuple[int, int], zipfile.ZipInfo] = {}
        for member in members:
            status = os.stat(archive.extract(member, target))
            # By the file, as the file system may take a.jpg for A.jpg.
            earlier = written.setdefault((status.st_dev, status.st_ino), member)
            if (earlier.CRC, earlier.file_size) != (member.CRC, member.file_size):
                raise SourceError(
                    f"{masked(path)}: {shown(earlier.filename)} and {shown(member.filename)} are "
                    "two files that unpack to one: unpack it yourself, rename one of them, and "
                    "read the folder"
                )
        self._bytes += needed

    def tell(self) -> None:
        """Say how much is kept unpacked."""
        if self._bytes:
            self._notes.say(
                f"compressed input is unpacked: {self._bytes / 1e6:,.1f} MB are kept in "
                f"{tempfile.gettempdir()} (TMPDIR) while the build runs"
            )

    def _new(self, path: str) -> str:
        if self._folder is None:
            self._folder = new_folder()
        # A folder of its own, so that it is called as the input is.
        folder = tempfile.mkdtemp(dir=self._folder.name)
        return os.path.join(folder, stem_of(storage.base_name(path)))

    def _copied(self, path: str, kind: str) -> tuple[str, str]:
        with storage.open_binary(path) as raw:
            return self._written(io.BufferedReader(cast(Any, raw), HEAD), kind, path)

    def _written(self, stream: BinaryIO, kind: str, path: str) -> tuple[str, str]:
        try:
            target = self._new(path)
            with open(target, "wb") as file:
                return target, self._copy(stream, kind, path, file)
        except OSError as error:
            raise SourceError(
                f"{tempfile.gettempdir()}: cannot be written: {error.strerror or error}; make "
                "room, or choose another folder with TMPDIR"
            ) from error

    def _copy(self, stream: BinaryIO, kind: str, path: str, file: BinaryIO) -> str:
        """Write what a stream holds; return why it cannot be read on, "" if it is whole."""
        plain = unpacked(stream, kind, TableFile(path, storage.base_name(path)))
        while True:
            try:
                block = plain.read(_BLOCK)
            except FAULTS as error:
                return f"{kind}: {' '.join(str(error).split()) or type(error).__name__}"
            if not block:
                return ""
            file.write(block)
            self._bytes += len(block)
