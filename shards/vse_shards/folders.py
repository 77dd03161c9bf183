"""The files below a folder of images: one walk for a build and for commands that embed."""

from __future__ import annotations

import os

from vse_shards import storage
from vse_shards.notes import Notes
from vse_shards.opening import IMAGE_SUFFIXES

# In lower case: files and folders that macOS, Windows, Jupyter, Synology and desktops leave.
_LEFT_FILES = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"}
_LEFT_FOLDERS = {
    *("__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".ipynb_checkpoints"),
    *("@eadir", "$recycle.bin", "system volume information", ".thumbnails"),
}
LEFT = "copies that programs left"


def is_left(path: str) -> bool:
    """Return whether a path, in a folder or an archive, is no data of its owner."""
    *folders, name = path.lower().split("/")
    # macOS keeps a file's attributes as "._name" beside it where the file system has none.
    if name.startswith("._") or name in _LEFT_FILES:
        return True
    return bool(folders) and not _LEFT_FOLDERS.isdisjoint(folders)


def files_below(folder: str) -> tuple[list[str], list[str]]:
    """Return the files of a folder, at any depth, and those that are copies left by programs.

    Args:
        folder: path or URL.

    Returns:
        Paths relative to the folder, sorted.

    Raises:
        OSError: the folder cannot be listed.
    """
    names = list(storage.walk(folder))
    left = [name for name in names if is_left(name)]
    return [name for name in names if not is_left(name)] if left else names, left


def data_below(folder: str, notes: Notes) -> list[str]:
    """Return the files of a folder as `files_below`, and count what is passed over in the notes."""
    names, left = files_below(folder)
    for name in left:
        notes.pass_over(LEFT, name)
    return names


def is_image_name(name: str) -> bool:
    """Return whether a file is taken for an image: by its suffix, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
