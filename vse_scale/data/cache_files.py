"""Files of a cache that its owner alone may enter, though other users know its name."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from vse_scale.errors import DatasetError


def default_folder() -> Path:
    """Return the default folder of staged shards, in the system's temporary folder.

    It is on the node itself, ``TMPDIR`` moves it, and only its owner may enter it.
    """
    return Path(tempfile.gettempdir()) / f"vse_scale-shards-{os.getuid()}"


def size_of(path: Path) -> int:
    """Return a file's size in bytes, -1 without a file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def make_own(folder: Path, name: str) -> None:
    """Create a folder for this user alone, or check that nobody else can put files into it.

    Raises:
        DatasetError: the folder cannot be created, or is another user's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder == default_folder():  # its name is known to all users of the machine
            status = folder.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if ours:
                folder.chmod(0o700)
        else:
            status = folder.stat()
            ours = os.getuid() in (0, status.st_uid) and not status.st_mode & stat.S_IWOTH
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot hold staged shards: {error.strerror}; set {name}"
        ) from error
    if not ours:
        raise DatasetError(
            f"{folder}: cannot hold staged shards: other users can write there; set {name} to a "
            "folder of your own"
        )


def opened(path: Path, mode: str) -> BinaryIO:
    """Open a file of the cache: no link is followed, and others may not read a new one."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600)

    return cast(BinaryIO, open(path, mode, opener=opener))
