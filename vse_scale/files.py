"""Files and folders that appear whole under their name, or not at all.

They are written aside, synced and renamed: after a kill or on a full disk the former file stands.
Names that end in `PARTIAL` are leftovers of a kill; anybody may remove them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vse_scale.errors import OutputError, StorageError
from vse_shards.system import exchange

PARTIAL = ".partial"

_MORE_ROOM = "make room there"
_OTHER_RIGHTS = "give another, or the right to write there"
_REMEDIES = {
    errno.ENOSPC: _MORE_ROOM,
    errno.EDQUOT: _MORE_ROOM,
    errno.EFBIG: _MORE_ROOM,
    errno.EACCES: _OTHER_RIGHTS,
    errno.EPERM: _OTHER_RIGHTS,
    errno.EROFS: _OTHER_RIGHTS,
    errno.ENOTDIR: "give a folder, not a file or a place below one",
    errno.EEXIST: "give a folder, not a file or a place below one",
    errno.EISDIR: "remove the folder of that name",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path without links that lead in a circle",
}


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends well.

    Args:
        path: of the file, whose folder must be there; a file of that name is replaced at once.
        shared: whether several processes, of several machines, may write ``path`` at one time.
    """
    partial = _aside(path, f".{socket.gethostname()[:63]}.{os.getpid()}" if shared else "")
    # A leftover, or a link that another user put there to have its target written.
    partial.unlink(missing_ok=True)
    try:
        with _named(path):
            yield partial
            sync(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write ``text`` to ``path`` as UTF-8, as `whole_file` does."""
    with whole_file(path, shared=shared) as partial:
        partial.write_text(text, encoding="utf-8")


def write_output(path: Path, text: str) -> None:
    """Write ``text`` to a file that a user named; a device, a pipe or a link is written through."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with _named(path):
            path.write_text(text, encoding="utf-8")
    else:
        write_text(path, text)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` to ``path`` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name ``path`` in an error that has no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes ``path`` when the block ends well.

    It replaces a folder ``path``; leftovers of a killed process are removed first.
    """
    partial = _aside(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for inner in sorted(partial.rglob("*")):
            sync(inner)
        sync(partial)
        _put_in_place(partial, path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def stays_unwritable(error: OSError) -> bool:
    """Return whether the same write would fail again: no room, no right, no such kind of place."""
    return error.errno in _REMEDIES


def unwritable(what: str, error: OSError) -> OutputError | StorageError:
    """Return the error that says that ``what`` cannot be written, and the remedy.

    What need not be so at the next try is a StorageError.
    """
    kind = OutputError if stays_unwritable(error) else StorageError
    reason = error.strerror or str(error)
    return kind(f"{what}: cannot be written ({reason}); {remedy_of(error)}")


def remedy_of(error: OSError) -> str:
    """Return what the user can do about a write that failed."""
    return _REMEDIES.get(error.errno or 0, "look at the disk and its connection")


def system_error(error: Exception) -> OSError | None:
    """Return the system's error that a library, such as safetensors, made words of."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path``; what is left of a folder ``path`` is removed.

    At every moment there is a whole folder of that name where the file system can exchange two.
    """
    if not path.is_dir():
        partial.rename(path)
    elif not exchange(partial, path):
        # A folder cannot be renamed over one that holds files.
        replaced = _aside(path, ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path, owner: str = "") -> Path:
    return path.with_name(f".{path.name}{owner}{PARTIAL}")
