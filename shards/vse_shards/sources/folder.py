"""``folder``: ``name.jpg`` beside ``name.txt``, one caption a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.folders import data_below, is_image_name
from vse_shards.notes import Notes
from vse_shards.sources.base import (
    Location,
    Problem,
    Row,
    decode_line,
    is_unicode,
    usable_captions,
)
from vse_shards.sources.declared import FolderSplits


class FolderSource:
    """Images at any depth, each with a text file.

    The split is the one that the folder's ``README.md`` gives the image, as Hugging Face has it,
    else that which `find_split` finds in the path, else ``train``. The image id is the
    path.

    Args:
        path: path of the folder.

    Raises:
        SourceError: there is no such folder.
    """

    kind: ClassVar[str] = "folder"
    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, path: str) -> None:
        self._path = storage.require_input(path, folder=True)
        self.name = storage.base_name(self._path)
        self.notes = Notes()

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per image, sorted by path.

        Raises:
            SourceError: the folder cannot be listed.
        """
        try:
            names = data_below(self._path, self.notes)
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be listed: {error}") from error
        texts = {n[:-4]: n for n in names if n.lower().endswith(".txt")}
        described = set()
        pictures = list(filter(is_image_name, names))
        splits = FolderSplits(self._path, names, pictures, self.notes, images=True)
        for name in pictures:
            stem = os.path.splitext(name)[0]
            described.add(stem)
            found = splits.of(name)
            if found is None:
                continue
            split, why = found
            self.notes.split(split, name, why)
            if not is_unicode(name):
                shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                yield Problem(shown, None, split, "malformed row", "its name is not UTF-8")
            elif stem not in texts:
                yield Problem(name, name, split, "no caption", "there is no .txt beside it")
            else:
                yield from self._row(name, texts[stem], split)
        yield from self._without_image(
            names, {s: texts[s] for s in sorted(texts.keys() - described)}
        )

    def _without_image(self, names: list[str], alone: dict[str, str]) -> Iterator[Problem]:
        """Refuse texts, by their stems, and name the files that are there instead of images."""
        others = {os.path.splitext(n)[0]: n for n in names if not n.lower().endswith(".txt")}
        for stem, text in alone.items():
            if is_unicode(stem):
                detail = "there is no image beside it"
                if stem in others:
                    detail += f", but {others[stem]}, whose suffix is no image's"
                yield Problem(text, None, None, "caption for no image", detail)

    def _row(self, name: str, text: str, split: str) -> Iterator[Row | Problem]:
        try:
            data = storage.read_bytes(storage.locate(self._path, text))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            yield Problem(name, name, split, "unreadable", f"{text}: {reason}")
            return
        lines = [decode_line(line) for line in data.split(b"\n") if line.strip()]
        captions, problems = usable_captions(lines, None, origin=name, key=name, split=split)
        yield from problems
        if captions:
            yield Row(split, name, captions, Location(storage.locate(self._path, name)), name, name)
