"""``karpathy``: ``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json``."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes
from vse_shards.sources.base import Problem, Row, is_id, load_json, usable_captions
from vse_shards.sources.finding import ImageFinder
from vse_shards.sources.splits import FileSplit


class KarpathySource:
    """The splits of Karpathy and Fei-Fei (2015): train, restval (COCO only), val and test.

    The image id is COCO's if there is one, else ``imgid``. Captions keep their ``sentid``, which is
    COCO's annotation id. ``restval`` is a separate split, which papers add to training:
    ``--split train=train,restval --split val=val --split test=test``.

    Args:
        path: path of the JSON file.
        images: folder of the images, with or without COCO's folders ``train2014`` and ``val2014``,
            or with those of 2017; the default is ``images`` beside the file.

    Raises:
        SourceError: there is no such file or folder.
    """

    kind: ClassVar[str] = "karpathy"
    options: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, path: str, images: str | None = None) -> None:
        self._path = storage.require_input(path)
        self.name = storage.base_name(self._path)
        self.notes = Notes()
        self._split = FileSplit(self.name, self.notes)
        beside = storage.join(storage.parent(self._path), "images")
        if images is None and not storage.is_folder(beside):
            raise SourceError(f"{self._path}: has no folder 'images' beside it; give --images")
        self._images = storage.require_input(images or beside, folder=True)

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per image.

        Raises:
            SourceError: the file is not one of Karpathy's.
        """
        content = load_json(self._path)
        entries = content.get("images") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise SourceError(f"{self._path}: has no list 'images'; is it a dataset_*.json?")
        finder = ImageFinder(self._images, self.notes.say)
        for number, entry in enumerate(entries):
            yield from self._row(entry, f"{self.name} image {number}", finder)

    def _row(self, entry: Any, origin: str, finder: ImageFinder) -> Iterator[Row | Problem]:
        try:
            image_id = entry["cocoid"] if "cocoid" in entry else entry["imgid"]
            file_name = entry["filename"]
            split = self._split.of(entry.get("split"))
            texts = [{"id": s.get("sentid"), "text": s["raw"]} for s in entry["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            yield Problem(origin, None, None, "malformed row", f"no key {error}")
            return
        folder = entry.get("filepath", "")
        if not is_id(image_id) or not all(isinstance(s, str) for s in (split, file_name, folder)):
            detail = f"id {image_id!r}, split {split!r}, file {file_name!r} in {folder!r}"
            yield Problem(origin, None, None, "malformed row", detail)
            return
        captions, problems = usable_captions(texts, None, origin=origin, key=image_id, split=split)
        yield from problems
        if captions:
            location, name = finder.locate(posixpath.join(folder, file_name))
            yield Row(split, image_id, captions, location, origin, name)
