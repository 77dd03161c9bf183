"""``jsonl``: one JSON object per line, one line per image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes
from vse_shards.sources.base import Location, Problem, Row, is_id, usable_captions
from vse_shards.sources.finding import ImageFinder
from vse_shards.sources.splits import FileSplit


class JsonlSource:
    """Rows of ``{"image": path, "captions": [...]}``.

    Captions are strings, or objects with ``id`` and ``text``. Optional: ``split`` (default
    that of the file's name, else ``train``), ``image_id`` (or ``imgid``; default the path),
    ``caption_ids`` (or ``sentids``).

    Args:
        path: path of the file.
        images: folder that image paths are relative to; the default is the folder of the file or,
            if that lacks the first image, ``images`` in it.
        columns: names of the keys in the file, by their standard names.

    Raises:
        SourceError: there is no such file or folder.
    """

    kind: ClassVar[str] = "jsonl"
    options: ClassVar[frozenset[str]] = frozenset({"images", "columns"})

    def __init__(
        self, path: str, images: str | None = None, columns: dict[str, str] | None = None
    ) -> None:
        self._path = storage.require_input(path)
        self._images = storage.require_input(images, folder=True) if images else None
        self._columns = columns or {}
        self._finder: ImageFinder | None = None
        self.name = storage.base_name(self._path)
        self.notes = Notes()
        self._split = FileSplit(self.name, self.notes)

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per line, or a problem for an unusable line.

        Raises:
            SourceError: the file cannot be read.
        """
        self._finder = None
        try:
            with storage.open_binary(self._path) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield from self._row(line, f"{self.name} line {number}")
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be read: {error}") from error

    def _row(self, line: bytes, origin: str) -> Iterator[Row | Problem]:
        try:
            entry = json.loads(line)
        except UnicodeDecodeError as error:
            yield Problem(origin, None, None, "malformed row", f"not UTF-8: {error.reason}")
            return
        except (ValueError, RecursionError) as error:
            yield Problem(origin, None, None, "malformed row", f"not JSON: {error}")
            return
        if not isinstance(entry, dict):
            yield Problem(origin, None, None, "malformed row", "not a JSON object")
            return
        image = self._get(entry, "image")
        if not isinstance(image, str) or not image or not _is_path(image):
            found = ", ".join(map(repr, list(entry)[:8]))
            detail = f"'image' is {image!r}, not a path; keys are {found or 'none'}"
            yield Problem(origin, None, None, "malformed row", detail)
            return
        image_id = self._get(entry, "image_id", "imgid")
        image_id = image if image_id is None else image_id
        split = self._split.of(self._get(entry, "split"))
        if not is_id(image_id) or not isinstance(split, str):
            detail = f"image_id is {image_id!r}, split is {split!r}"
            yield Problem(origin, image, None, "malformed row", detail)
            return
        captions, problems = usable_captions(
            self._get(entry, "captions"),
            self._get(entry, "caption_ids", "sentids"),
            origin=origin,
            key=image_id,
            split=split,
        )
        yield from problems
        if captions:
            path, name = self._locate(image)
            yield Row(split, image_id, captions, Location(path), origin, name)

    def _get(self, entry: dict[str, Any], *names: str) -> Any:
        """Return the value of the first name that is present."""
        if names[0] in self._columns:
            return entry.get(self._columns[names[0]])
        return next((entry[name] for name in names if entry.get(name) is not None), None)

    def _locate(self, image: str) -> tuple[str, str]:
        """Return path and name of an image, in the folder that the first image decides."""
        if self._finder is None:
            self._finder = ImageFinder(self._images or self._folder(image), self.notes.say)
        return self._finder.locate(image)

    def _folder(self, first_image: str) -> str:
        beside = storage.parent(self._path)
        within = storage.join(beside, "images")
        if not storage.is_file(storage.join(beside, first_image)) and storage.is_folder(within):
            return within
        return beside


def _is_path(text: str) -> bool:
    """Return whether the text can be a file name."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
