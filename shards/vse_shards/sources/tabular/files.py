"""Files of a table: found by path, folder or pattern, opened through their compression."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, BinaryIO, cast

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.folders import files_below
from vse_shards.notes import Notes, shown

HEAD = 1 << 16  # bytes that tell a format
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
CONVERT = "convert it with iconv -f ENCODING -t UTF-8 (ENCODING: GBK, CP1251, SHIFT_JIS, ...)"
FAULTS = (
    *(OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    RuntimeError,  # zipfile's, of passwords and methods that it does not know
)
_OTHERS = {  # formats that are no table of ours, by the bytes they begin with
    b"ARROW1": "is an Arrow file: write it as Parquet (pyarrow.parquet.write_table)",
    b"\xff\xff\xff\xff": "is an Arrow stream: write it as Parquet (Dataset.to_parquet)",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook: save it as CSV UTF-8",
    b"SQLite format 3": "is an SQLite database: export the table as CSV",
    b"\x89HDF": "is HDF5, which has no rows: write them as jsonl",
    b"%PDF": "is a PDF, not a table",
    b"version https://git-lfs": "is a Git LFS pointer, not the file: git lfs pull fetches it",
    b"<!DOCTYPE html": "is a web page, not a table: download the file itself",
    b"<!doctype html": "is a web page, not a table: download the file itself",
    b"<html": "is a web page, not a table: download the file itself",
    b"\xff\xd8\xff": "is an image, not a table",
    b"\x89PNG": "is an image, not a table",
}


class Format(Enum):
    """Formats of tables, told by content."""

    DELIMITED = "text with delimiters"
    LINES = "JSON lines"
    VALUES = "a JSON list"
    OBJECT = "a JSON object"
    PARQUET = "Parquet"


@dataclass(frozen=True)
class TableFile:
    """One file of the input.

    Attributes:
        path: path or URL.
        name: name for messages, relative to the input.
    """

    path: str
    name: str

    @property
    def folder(self) -> str:
        """Folder of the file."""
        return storage.parent(self.path)

    @property
    def below(self) -> str:
        """Folders between the input and the file, with a slash at the end; "" if there are none."""
        return self.name[: self.name.rfind("/") + 1]


def find_files(path: str, suffixes: Collection[str]) -> tuple[str, list[TableFile]]:
    """Return the name of the input and its files, sorted by name.

    Args:
        path: a file, a folder with files of the suffixes at any depth, or a pattern such as
            ``train-*.parquet``.
        suffixes: in lower case; each may be followed by that of a compression.

    Raises:
        SourceError: there is no such file, or none in the folder.
    """
    if _is(storage.is_folder, path):
        folder = storage.require_input(path, folder=True)
        names = [name for name in files_below(folder)[0] if _is_table(name, suffixes)]
        if not names:
            raise SourceError(
                f"{folder}: is not a file, and a folder without {' or '.join(sorted(suffixes))}"
            )
        found = [TableFile(storage.join(folder, name), name) for name in names]
        return storage.base_name(folder), found
    if any(sign in path for sign in "*?[") and not _is(storage.is_file, path):
        return _matching(path)
    path = storage.require_input(path)
    name = storage.base_name(path)
    return name, [TableFile(path, name)]


def _is(kind: Callable[[str], bool], path: str) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # `require_input` says why it cannot be opened
        return False


def _matching(pattern: str) -> tuple[str, list[TableFile]]:
    # The folder above the first sign is the input, below which names and ids count.
    fixed = pattern[: min(pattern.find(sign) for sign in "*?[" if sign in pattern)]
    folder = storage.require_input(storage.parent(fixed) or ".", folder=True)
    wanted = pattern[len(storage.parent(fixed)) :].lstrip("/")
    names = [name for name in files_below(folder)[0] if _matches(name, wanted)]
    if not names:
        raise SourceError(f"{shown(pattern)}: no file matches; check the path")
    found = [TableFile(storage.join(folder, name), name) for name in names]
    return storage.base_name(pattern), found


def _matches(name: str, pattern: str) -> bool:
    """Return whether a path fits a pattern; ``*`` stays within a folder, ``**`` does not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern.replace("**/", "*"))
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _is_table(name: str, suffixes: Collection[str]) -> bool:
    # Leftovers of systems and writers, such as ._a.csv, .ipynb_checkpoints and _temporary.
    if any(part.startswith((".", "_")) for part in name.split("/")):
        return False
    stem = name.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    return stem.endswith(tuple(suffixes))


@contextmanager
def reading(file: TableFile) -> Iterator[None]:
    """Convert what files, decompressors and decoders raise to one line.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        yield
    except FAULTS as error:
        if isinstance(error, UnicodeDecodeError) and error.encoding == "utf-8":
            raise SourceError(f"{file.path}: is not UTF-8: {CONVERT}") from error
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{file.path}: cannot be read: {shown(' '.join(str(said).split()))}"
        ) from error


@contextmanager
def opened(file: TableFile, notes: Notes) -> Iterator[BinaryIO]:
    """Open a file for buffered reading, unpacked if it is compressed.

    Raises:
        SourceError: it is no table, or an archive of several files.
    """
    with storage.open_binary(file.path) as raw:
        stream: Any = io.BufferedReader(cast(Any, raw), HEAD)
        kind = compression(stream)
        if kind is not None:
            if not file.name.lower().endswith(COMPRESSED):
                notes.say(f"{shown(file.name)} is {kind} by its content: it is unpacked", kind)
            stream = io.BufferedReader(cast(Any, unpacked(stream, kind, file)), HEAD)
        _refuse_others(peek(stream), file)
        yield stream


def peek(stream: Any) -> bytes:
    """Return the first bytes of a stream, which stay to be read."""
    return cast(bytes, stream.peek(HEAD))


def seekable(stream: BinaryIO) -> BinaryIO:
    """Return a stream that can be read at random: the stream itself, or a copy on disk."""
    inner = stream
    while isinstance(inner, io.BufferedReader):
        inner = cast(Any, inner.raw)
    # Unpacked streams claim to seek, but start anew each time.
    if isinstance(inner, io.FileIO) or (not _is_unpacked(inner) and inner.seekable()):
        return stream
    copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def _is_unpacked(stream: Any) -> bool:
    return isinstance(stream, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | zipfile.ZipExtFile)


def compression(stream: Any) -> str | None:
    """Return the format of a compressed file by its first bytes, which stay to be read."""
    head = stream.peek(8)[:8]
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def unpacked(stream: Any, kind: str, file: TableFile) -> Any:
    """Return what a compressed file holds, as a stream.

    Raises:
        SourceError: it is a zip of several files, or zstd without pyarrow.
    """
    openers: dict[str, Callable[[Any], Any]] = {
        "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
        "bzip2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
        "zip": lambda packed: _member(packed, file),
        "zstd": lambda packed: _zstd(packed, file),
    }
    return openers[kind](stream)


def _member(stream: Any, file: TableFile) -> Any:
    archive = zipfile.ZipFile(stream)
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith("__MACOSX/")
    ]
    if any(name.startswith(("xl/", "word/")) for name in names):
        raise SourceError(f"{file.path}: is an Excel workbook: save it as CSV UTF-8")
    if len(names) != 1:
        raise SourceError(
            f"{file.path}: is a zip of {len(names):,} files: unpack it, and give the folder"
        )
    return archive.open(names[0])


def _zstd(stream: Any, file: TableFile) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise SourceError(
            f"{file.path}: is zstd: unpack it with unzstd, or pip install pyarrow"
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def _refuse_others(head: bytes, file: TableFile) -> None:
    for magic, said in _OTHERS.items():
        if head.startswith(magic):
            raise SourceError(f"{file.path}: {said}")
    if head[257:262] == b"ustar":
        raise SourceError(f"{file.path}: is a tar: read it with --source webdataset")
