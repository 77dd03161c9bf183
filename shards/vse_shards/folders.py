"""The files below a folder of images: one walk for a build and for commands that embed."""

from __future__ import annotations

import os
import re

from vse_shards import storage
from vse_shards.opening import IMAGE_SUFFIXES

# Copies that macOS, Jupyter and Synology leave beside people's files.
_LEFT = re.compile(r"(?:^|/)(?:\._[^/]*$|(?:__MACOSX|\.AppleDouble|\.ipynb_checkpoints|@eaDir)/)")


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
    left = [name for name in names if _LEFT.search(name)]
    return [name for name in names if not _LEFT.search(name)] if left else names, left


def is_image_name(name: str) -> bool:
    """Return whether a file is taken for an image: by its suffix, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
