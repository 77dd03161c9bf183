"""``butd``: region features by image id, as bottom-up attention and its followers ship them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.plain_files import open_plain
from vse_shards.regions import HDF, MAX_LINE, TSV, WHOLE, hdf_keys
from vse_shards.sources.base import Problem, RegionsAt, Row, Source
from vse_shards.sources.coco import CocoSource
from vse_shards.sources.karpathy import KarpathySource

_COCO = re.compile(r"(?:COCO_\w+_)?0*(\d+)")
_FEWEST = 6  # cells of a line: id, width, height, regions, boxes, features


class ButdSource:
    """Features in ``.tsv``, ``.h5``, or a ``.npz`` or ``.npy`` for each image; captions beside.

    Captions and splits are those of Karpathy's ``dataset_*.json`` or COCO's ``captions_*.json`` in
    the same folder. Features belong to an image by its id, or by the name of its file. Images are
    stored beside their regions if ``images`` is given.

    Args:
        path: folder with features and captions, or one file of features beside the captions.
        images: folder of the images; None stores regions alone.

    Raises:
        SourceError: there is no such folder, or it lacks features or captions.
    """

    kind: ClassVar[str] = "butd"
    options: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, path: str, images: str | None = None) -> None:
        if storage.is_url(path):
            raise SourceError(f"{path}: region files must be on this machine")
        if storage.is_folder(path):
            self._folder = storage.require_input(path, folder=True)
            names = list(storage.walk(self._folder))
        else:
            file = storage.require_input(path)
            self._folder = storage.parent(file)
            beside = [name for name in storage.walk(self._folder) if name.endswith(".json")]
            names = [storage.base_name(file), *beside]
        self.name = storage.base_name(self._folder)
        self._files = [name for name in names if _is_features(name)]
        if not self._files:
            raise SourceError(f"{self._folder}: has no features (.tsv, .h5, .npz or .npy)")
        self._with_images = images is not None
        self._captions = self._caption_source(names, images)
        self.notes = self._captions.notes

    def rows(self) -> Iterator[Row | Problem]:
        """Yield the rows of the captions, each with the place of its regions.

        Raises:
            SourceError: a file cannot be read.
        """
        places = self._index()
        for row in self._captions.rows():
            if isinstance(row, Problem):
                yield row
                continue
            key = next((key for key in _keys(row) if key in places), None)
            if key is None:
                detail = f"none of the {len(places):,} features is of id {row.image_id}"
                yield Problem(row.origin, row.image_id, row.split, "missing regions", detail)
                continue
            image = row.image if self._with_images else None
            yield replace(row, image=image, regions=places[key])

    def _caption_source(self, names: list[str], images: str | None) -> Source:
        files = [name for name in names if storage.base_name(name).endswith(".json")]
        karpathy = [n for n in files if storage.base_name(n).startswith("dataset")]
        coco = [n for n in files if storage.base_name(n).startswith("captions")]
        if len(karpathy) + bool(coco) != 1:
            found = f"several ({', '.join([*karpathy, *coco][:3])})" if karpathy else "none"
            raise SourceError(
                f"{self._folder}: has region features, which need captions, and {found} of these; "
                "put one dataset_*.json of Karpathy's, or captions_*.json of COCO's, beside them"
            )
        if karpathy:
            file = storage.join(self._folder, karpathy[0])
            return KarpathySource(file, images or self._folder)
        folder = storage.parent(storage.join(self._folder, coco[0]))
        return CocoSource(folder, images or self._folder)

    def _index(self) -> dict[str, RegionsAt]:
        """Return the place of each image's regions; the first of several."""
        places: dict[str, RegionsAt] = {}
        again = 0
        for name in self._files:
            path = storage.join(self._folder, name)
            for key, row in _entries(path):
                again += key in places
                places.setdefault(key, RegionsAt(path, row))
        if again:
            self.notes.say(f"{again:,} features are of an image that has some; the first count")
        return places


def _is_features(name: str) -> bool:
    lower = name.lower()
    return bool(TSV.fullmatch(lower)) or lower.endswith((*HDF, ".npz", ".npy"))


def _entries(path: str) -> Iterator[tuple[str, int]]:
    """Yield the id of each image in a file, and its row, or the offset of its line."""
    if TSV.fullmatch(path.lower()):
        yield from _lines(path)
    elif path.lower().endswith(HDF):
        yield from ((key, row) for row, (key, _) in enumerate(hdf_keys(path)))
    else:
        yield os.path.splitext(storage.base_name(path))[0], WHOLE


def _lines(path: str) -> Iterator[tuple[str, int]]:
    """Yield id and offset of each line, read as a stream: these files have tens of gigabytes."""
    offset = 0
    with open_plain(path) as file:
        while line := file.readline(MAX_LINE):
            cells = line.count(b"\t") + 1
            key = line[:81].partition(b"\t")[0].decode(errors="replace")
            if cells < _FEWEST or len(line) == MAX_LINE:
                raise SourceError(
                    f"{path}: byte {offset:,}: a line of {cells} cells and {len(line):,} bytes; "
                    "bottom-up attention's have id, width, height, regions, boxes and features"
                )
            yield key, offset
            offset += len(line)


def _keys(row: Row) -> Iterator[str]:
    """Yield the ids that features may have for a row, the surest first."""
    yield str(row.image_id)
    stem = os.path.splitext(storage.base_name(row.name))[0]
    yield stem
    if number := _COCO.fullmatch(stem):
        yield number[1]
