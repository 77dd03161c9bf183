"""Operating systems' differences: locks, exchanged folders, names on the disk, cores."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Flags of an opening that does not wait for a pipe's writer.
READING_AT_ONCE = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    READING_AT_ONCE |= getattr(os, _flag, 0)
_SAFE_PATH = "PYTHONSAFEPATH"  # as the option -P of Python
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS


def cores() -> int:
    """Return the number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):  # neither on macOS nor on Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def tidy_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that its temporary files are removed."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def only_packages() -> Iterator[None]:
    """Let processes that start in the block import nothing from the current folder.

    ``python -c`` and ``python -m``, and so `multiprocessing`, look there before all else, and the
    folder may be one in which others can make files.
    """
    former = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if former is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = former


def slashed(path: str) -> str:
    """Return a path of this machine with ``/`` between its parts."""
    return path.replace(os.sep, "/")


def is_absolute(name: str) -> bool:
    """Return whether a name leads elsewhere than below the folder that it is joined to."""
    # On Windows ``/x`` and ``C:x`` do, though they are not absolute there.
    return os.path.isabs(name) or name.startswith("/") or bool(os.path.splitdrive(name)[0])


def sync_folder(path: str) -> None:
    """Bring the names of a folder to the disk; where that takes no call, do nothing."""
    if sys.platform == "win32":  # its folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked_folder(path: str, *, shared: bool = False) -> Iterator[bool]:
    """Lock a folder for this process, and yield whether no other process has locked it.

    The lock ends with the process, however that ends. Where a file system cannot lock folders, as
    some network ones, True is yielded without a lock.

    Args:
        path: path of the folder.
        shared: let others lock it in the same way.

    Raises:
        OSError: the folder cannot be opened.
    """
    # flock rather than a file's existence: the kernel releases it even after a kill.
    name = path
    flags = os.O_RDONLY
    if sys.platform == "win32":
        key = hashlib.sha256(os.path.realpath(path).casefold().encode()).hexdigest()[:24]
        name = os.path.join(tempfile.gettempdir(), f"vse-shards-{key}.lock")
        flags = os.O_RDWR | os.O_CREAT
    handle = os.open(name, flags)
    try:
        yield _lock(handle, shared) and _is_still(handle, name)
    finally:
        os.close(handle)


def _lock(handle: int, shared: bool) -> bool:
    """Lock an open file or folder; return False if another process has."""
    try:
        if sys.platform == "win32":
            if not shared:  # it has no shared locks
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _is_still(handle: int, name: str) -> bool:
    """Return whether a name is still that of an open folder: a build may have replaced it."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.stat(name))
    return False


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; False where the system cannot."""
    if sys.platform == "win32":
        return False
    library, names = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    return not failed
