"""``folder``: ``name.jpg`` beside ``name.txt``, one caption a line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import ClassVar

from vse_shards import reach, storage
from vse_shards.errors import SourceError
from vse_shards.folders import data_below, is_image_name
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import (
    Caption,
    Location,
    Problem,
    Row,
    decode_line,
    is_unicode,
    usable_captions,
)
from vse_shards.sources.declared import FolderSplits
from vse_shards.sources.finding import ImageFinder
from vse_shards.sources.packed import Unpacked, is_tar_name
from vse_shards.sources.splits import FileSplit

# Folders of texts that lie as `images` does: images/a/1.jpg has captions/a/1.txt.
_IMAGES, _TEXTS = "images", ("captions", "texts", "labels", "text", "text_c10")
_ENDS = (".txt", ".caption")  # the second as kohya's scripts have it; the first wins
_TABLES = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}
_BOX = re.compile(rb"\d+(\s+-?[\d.]+(e-?\d+)?){4,}")  # YOLO's class, centre and size
_MAX_LIST = 1 << 30  # bytes of a list of paths


class FolderSource:
    """Images at any depth, each with a text file.

    The text, ``.txt`` or ``.caption``, lies beside its image or, for ``images/a/1.jpg``, in
    ``captions/a/1.txt``. The split is
    the one that the folder's ``README.md`` gives the image, as Hugging Face has it, else that which
    `find_split` finds in the path, else ``train``. The image id is the path.

    Args:
        path: path of the folder, of a zip of one, or of a ``.txt`` with a path of an image a line,
            whose name may say their split.
        images: folder that the paths of a list are relative to, by default that of the list.
        allow_outside: read texts that are links out of the folder, or lie beside images outside.

    Raises:
        SourceError: there is no such folder, zip or list.
    """

    kind: ClassVar[str] = "folder"
    options: ClassVar[frozenset[str]] = frozenset({"allow_outside", "images"})

    def __init__(
        self, path: str, images: str | None = None, *, allow_outside: bool = False
    ) -> None:
        self.notes = Notes()
        self._allow_outside = allow_outside
        self._unpacked = Unpacked(self.notes)
        self._list = ""
        if storage.is_folder(path) or not storage.is_file(path):
            self._path = storage.require_input(path, folder=True)
        elif path.lower().endswith(".zip"):
            self._path = self._unpacked.folder(storage.require_input(path))
        elif path.lower().endswith(".txt"):
            self._list = storage.require_input(path)
            self._path = storage.parent(self._list)
            if images is not None:
                self._path, images = storage.require_input(images, folder=True), None
        elif is_tar_name(path):
            raise SourceError(f"{path}: is a tar: read it with --source webdataset")
        else:
            raise SourceError(f"{path}: is neither a folder, a zip of one, nor a .txt of paths")
        if images is not None:
            raise SourceError("--images applies to a .txt of paths, not to a folder; omit it")
        self.name = storage.base_name(self._list or self._path)

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per image, sorted by path, or as the list has them.

        Raises:
            SourceError: the folder cannot be listed, or the list cannot be read.
        """
        self._unpacked.tell()
        if self._list:
            yield from self._listed()
            return
        try:
            names = data_below(self._path, self.notes)
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be listed: {error}") from error
        texts: dict[str, str] = {}
        for end in _ENDS:
            for name in names:
                if name.lower().endswith(end):
                    texts.setdefault(name[: -len(end)], name)
        table = next((n for n in names if storage.base_name(n) in _TABLES), None)
        nothing = "there is no .txt beside it"
        if table is not None:  # Hugging Face's layout
            kind = _TABLES[storage.base_name(table)]
            nothing += f", but {shown(table)}: --source {kind} with the same --input reads it"
        described = set()
        pictures = list(filter(is_image_name, names))
        splits = FolderSplits(self._path, names, pictures, self.notes, images=True)
        for name in pictures:
            stem = next((one for one in _text_stems(name) if one in texts), None)
            described.add(stem)
            found = splits.of(name)
            if found is None:
                continue
            split, why = found
            self.notes.split(split, name, why)
            if not is_unicode(name):
                yield Problem(_escaped(name), None, split, "malformed row", "its name is not UTF-8")
            elif stem is None:
                yield Problem(name, name, split, "no caption", nothing)
            else:
                image = Location(storage.locate(self._path, name))
                text = storage.locate(self._path, texts[stem])
                yield from self._row(name, image, text, split)
        yield from self._without_image(
            names, {s: texts[s] for s in sorted(texts.keys() - described)}
        )

    def _listed(self) -> Iterator[Row | Problem]:
        """Yield the rows of a list of paths, which are relative to it."""
        finder = ImageFinder(self._path, self.notes.say)
        splits = FileSplit(self.name, self.notes)
        for number, line in enumerate(self._lines(), start=1):
            origin = f"{self.name} line {number}"
            name = decode_line(line)
            if name is None or "\0" in name:
                yield Problem(origin, None, None, "malformed row", "not UTF-8, or no path")
                continue
            if not name:
                continue
            name = name.removeprefix("./")
            split = splits.of(None)
            if not is_image_name(name):
                detail = f"{shown(name)} is no name of an image; a list has a path a line"
                yield Problem(origin, None, split, "malformed row", detail)
                continue
            image, name = finder.locate(name)
            text = self._text_of(image.path)
            if text is not None:
                yield from self._row(name, image, text, split)
            elif not reach.is_outside(image.path) and storage.file_size(image.path) >= 0:
                yield Problem(origin, name, split, "no caption", "there is no .txt beside it")
            else:  # as a row, so that the build counts it among those outside, or missing
                nothing = (Caption(None, ""),)
                yield Row(split, name, nothing, image, origin, name)

    def _text_of(self, image: str) -> str | None:
        """Return the path of the text of a list's image as `storage.locate`, None if none is there.

        Beside an image that the build refuses, no text is looked for.
        """
        if reach.is_outside(image) and (not self._allow_outside or reach.is_chained(image)):
            return None
        stems = _text_stems(reach.unmarked(image))
        texts = (f"{stem}{e}" for stem in stems for end in _ENDS for e in (end, end.upper()))
        try:
            text = next((one for one in texts if storage.file_size(one) >= 0), None)
        except OSError:  # such as of a protocol that is not installed: so is its image
            return None
        if text is None or self._allow_outside:
            return text
        # The texts of images/1.jpg may lie in captions/, beside the folder of the list.
        folders = map(storage.parent, _text_stems(storage.join(self._path, "any")))
        located = [storage.locate(folder, text) for folder in folders]
        return next((one for one in located if not reach.is_outside(one)), located[0])

    def _lines(self) -> list[bytes]:
        try:
            return storage.read_limited(self._list, _MAX_LIST).splitlines()
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"{self._list}: cannot be read: {reason}") from error

    def _without_image(self, names: list[str], alone: dict[str, str]) -> Iterator[Problem]:
        """Refuse texts, by their stems, and name the files that are there instead of images."""
        others = {os.path.splitext(n)[0]: n for n in names if not n.lower().endswith(_ENDS)}
        for stem, text in alone.items():
            if is_unicode(stem):
                detail = "there is no image beside it"
                if stem in others:
                    detail += f", but {others[stem]}, whose suffix is no image's"
                yield Problem(text, None, None, "caption for no image", detail)

    def _row(self, name: str, image: Location, text: str, split: str) -> Iterator[Row | Problem]:
        """Yield the row of an image and the text at a path, marked if it is outside."""
        if reach.is_outside(text) and not self._allow_outside:
            detail = f"{shown(storage.base_name(text))} is a link out of the folder"
            yield Problem(name, name, split, "outside", f"{detail}; --allow-outside follows it")
            return
        text = reach.unmarked(text)
        try:
            data = storage.read_bytes(text)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            yield Problem(name, name, split, "unreadable", f"{storage.base_name(text)}: {reason}")
            return
        lines = [line.strip() for line in data.split(b"\n") if line.strip()]
        if lines and all(map(_BOX.fullmatch, lines)):
            detail = f"{shown(storage.base_name(text))} has boxes, not captions"
            yield Problem(name, name, split, "no caption", detail)
            return
        captions, problems = usable_captions(
            list(map(decode_line, lines)), None, origin=name, key=name, split=split
        )
        yield from problems
        if captions:
            yield Row(split, name, captions, image, name, name)


def _text_stems(name: str) -> Iterator[str]:
    """Yield the paths without suffix that the text of an image may have."""
    stem = os.path.splitext(name)[0]
    yield stem
    parts = stem.split("/")
    if _IMAGES in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index(_IMAGES)  # the nearest
        for folder in _TEXTS:
            yield "/".join([*parts[:at], folder, *parts[at + 1 :]])


def _escaped(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
