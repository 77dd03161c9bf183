"""Files of a cache that its owner alone may enter, though other users know its name."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from vse_scale.errors import DatasetError

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_TORCHS = "torchinductor_"  # and the user's name, in the temporary folder


def default_folder() -> Path:
    """Return the default folder of staged shards, in the system's temporary folder.

    It is on the node itself, ``TMPDIR`` moves it, and only its owner may enter it.
    """
    return Path(tempfile.gettempdir()) / f"vse_scale-shards-{os.getuid()}"


def compiled_folder() -> Path:
    """Return the default folder of what torch.compile makes; as `default_folder`."""
    return Path(tempfile.gettempdir()) / f"vse_scale-compiled-{os.getuid()}"


def own_compiled_code() -> None:
    """Have torch.compile keep its code where no other user can put any.

    Its own default is a name in the temporary folder that all can guess, and it looks at no owner.

    Raises:
        DatasetError: the folder cannot be created, or is another user's.
    """
    chosen = os.environ.get(_COMPILED, _TORCHS)  # torch sets it too, once it is imported as a whole
    if Path(chosen).name.startswith(_TORCHS):
        make_own(compiled_folder(), _COMPILED, "compiled code")
        os.environ[_COMPILED] = str(compiled_folder())
    from torch._inductor import config  # takes a second, and only compiling needs it

    # On a CPU they lie in torch's own folder, wherever the code is.
    config.cpp_cache_precompile_headers = False


def size_of(path: Path) -> int:
    """Return a file's size in bytes, -1 without a file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def make_own(folder: Path, name: str, holds: str = "staged shards") -> None:
    """Create a folder for this user alone, or check that nobody else can put files into it.

    Args:
        folder: the folder.
        name: the user's name of it, for messages.
        holds: its content, for messages.

    Raises:
        DatasetError: the folder cannot be created, or is another user's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Their names are known to all users of the machine.
        if folder in (default_folder(), compiled_folder()):
            status = folder.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if ours:
                folder.chmod(0o700)
        else:
            status = folder.stat()
            ours = os.getuid() in (0, status.st_uid) and not status.st_mode & stat.S_IWOTH
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot hold {holds}: {error.strerror}; set {name}"
        ) from error
    if not ours:
        raise DatasetError(
            f"{folder}: cannot hold {holds}: other users can write there; set {name} to a "
            "folder of your own"
        )


def opened(path: Path, mode: str) -> BinaryIO:
    """Open a file of the cache: no link is followed, and others may not read a new one."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600)

    return cast(BinaryIO, open(path, mode, opener=opener))
