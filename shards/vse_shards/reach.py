"""Files that rows may name: those below the folder of the images, and no others."""

from __future__ import annotations

import os
import posixpath
from functools import lru_cache
from urllib.parse import unquote

from vse_shards import notes
from vse_shards.masking import masked
from vse_shards.remote import is_url
from vse_shards.system import is_absolute, slashed

_OUTSIDE = "outside:"  # no storage opens a path that begins so
_LEADING_OUT = ("..", "%", "::")  # without these, a relative name stays in its folder


def inside(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``, or a marked path if it leads out of the folder.

    An absolute path or URL below the folder is returned unchanged. `is_outside` tells a marked
    path; nothing is found under it.
    """
    if is_outside(name):
        return name
    name = name if is_url(name) else slashed(name)
    if is_url(name) or is_absolute(name):
        path = name
    else:
        path = posixpath.join(folder, name)
        if not any(sign in name for sign in _LEADING_OUT):
            return path  # nearly every name, without further work
    return path if _is_below(folder, path) else _OUTSIDE + path


def locate(folder: str, name: str) -> str:
    """Return the path of a file that a row names, as `inside` does, and with its links followed.

    Links that stay in the folder are followed, and those of a Hugging Face cache, which lead from
    ``snapshots`` to ``blobs`` beside it. A file that does not exist is missing, not outside.
    """
    path = inside(folder, name)
    if is_url(unmarked(path)):
        return path
    try:
        real = _real(unmarked(path))
    except ValueError:  # such as a NUL; no file has such a name
        return unmarked(path)
    if _is_allowed(folder, real) or not os.path.exists(real):
        return unmarked(path)
    return _OUTSIDE + unmarked(path)


@lru_cache(maxsize=4096)
def holds(folder: str, below: str) -> bool:
    """Return whether all of a folder but its links may be named by the rows of ``folder``."""
    return _is_allowed(folder, _real_folder(below))


def _is_allowed(folder: str, real: str) -> bool:
    return any(_is_under(root, real) for root in _roots(folder))


def is_outside(path: str) -> bool:
    """Return whether a path is marked as outside the folder of the images."""
    return path.startswith(_OUTSIDE)


def unmarked(path: str) -> str:
    """Return a path without the mark."""
    return path.removeprefix(_OUTSIDE)


def is_chained(path: str) -> bool:
    """Return whether a path is a URL of several protocols, which is never opened."""
    path = unmarked(path)
    return is_url(path) and "::" in path


def is_web(path: str) -> bool:
    """Return whether a path is an address of a web server."""
    return path.startswith(("http://", "https://"))


def shown(name: str) -> str:
    """Return a name for a message: without passwords, and short; both its ends stay."""
    return notes.shown(masked(name))


def forget_folders() -> None:
    """Drop what is known about links of folders."""
    _real_folder.cache_clear()
    _roots.cache_clear()
    holds.cache_clear()


def _is_below(folder: str, path: str) -> bool:
    """Return whether a path is below a folder by its text, or by the links of its folder."""
    if is_url(path) or is_url(folder):
        start = folder.rstrip("/") + "/"
        if not is_url(folder) or "::" in path or not path.startswith(start):
            return False
        # %2e%2e is .. to a web server.
        return not posixpath.normpath(unquote(path[len(start) :])).startswith(("..", "/"))
    if _is_under(posixpath.normpath(folder), posixpath.normpath(path)):
        return True
    # The folder may have been named by way of a link, and the row not.
    try:
        return is_absolute(path) and _is_under(_real_folder(folder), _real(path))
    except ValueError:
        return False


def _is_under(folder: str, path: str) -> bool:
    if folder == ".":  # a name without a folder yet
        return not path.startswith(("..", "/"))
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@lru_cache(maxsize=256)
def _roots(folder: str) -> tuple[str, ...]:
    """Return the real folders that the links of a folder may lead to."""
    root = _real_folder(folder)
    repository, snapshots, _ = root.partition("/snapshots/")
    blobs = f"{repository}/blobs"
    return (root, blobs) if snapshots and os.path.isdir(blobs) else (root,)


def _real(path: str) -> str:
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return slashed(os.path.realpath(path))
    real = f"{_real_folder(folder).rstrip('/')}/{name}"
    return slashed(os.path.realpath(real)) if os.path.islink(real) else real


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return slashed(os.path.realpath(folder))
