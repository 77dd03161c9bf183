"""Conversion of a table's records to rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vse_shards import reach, storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import Location, Problem, Row, is_id, usable_captions
from vse_shards.sources.finding import ImageFinder
from vse_shards.sources.splits import FileSplit
from vse_shards.sources.spool import Spool
from vse_shards.sources.tabular.cells import (
    BadCell,
    captions_of,
    ids_of,
    image_bytes,
    is_empty,
    is_path,
    listed,
    to_id,
)
from vse_shards.sources.tabular.files import TableFile

_NUMBERED = re.compile(r"(.+\.[A-Za-z]{3,4})#\d+")  # Flickr's name.jpg#0 of caption 0
_DOWNLOAD = "web addresses are not downloaded: img2dataset does, and --source webdataset reads it"


@dataclass(frozen=True)
class Record:
    """Cells of one row by standard name; absent columns are absent.

    Attributes:
        origin: place of the record, for messages.
        cells: values by standard name.
        several: whether several columns hold the captions, which then are a list of cells.
        keys: names of what the record has, for the message that it has no image.
    """

    origin: str
    cells: Mapping[str, Any]
    several: bool = False
    keys: tuple[str, ...] = ()


@dataclass
class Images:
    """Images that the tables of one source name: their folders, and those kept from cells.

    Attributes:
        folder: folder that names are relative to; None is the folder of the table or, where the
            first image that is found lies there, ``images`` in it.
        notes: told what was assumed.
        spool: images that the rows themselves hold.
    """

    folder: str | None
    notes: Notes
    spool: Spool = field(default_factory=Spool)
    _finders: dict[str, ImageFinder] = field(default_factory=dict)
    _chosen: dict[str, str] = field(default_factory=dict)

    def locate(self, name: str, table_folder: str) -> tuple[Location, str]:
        """Return the location of a named image, and its name for messages."""
        folder = self.folder or self._chosen.get(table_folder) or self._choose(name, table_folder)
        if folder not in self._finders:
            self._finders[folder] = ImageFinder(folder, self.notes.say)
        return self._finders[folder].locate(name)

    def _choose(self, name: str, beside: str) -> str:
        within = storage.join(beside, "images")
        for folder in (beside, within):
            if _is_there(folder, name):
                self._chosen[beside] = folder
                return folder
        return beside


class RowMaker:
    """Converts the records of one file to rows.

    Args:
        file: the table.
        images: images of all tables of the source.
        joined: whether a row of one caption is marked as one of several of its image.
        declared: split of the file and who says so, if the folder has a card.
    """

    def __init__(
        self,
        file: TableFile,
        images: Images,
        joined: bool,
        declared: tuple[str, str] | None = None,
    ) -> None:
        self._file, self._images, self._joined = file, images, joined
        self._split = FileSplit(file.name, images.notes, declared)
        self._strip: bool | None = None
        self._first = True

    def rows(self, record: Record) -> Iterator[Row | Problem]:
        """Yield the row of a record, after the problems with it.

        Raises:
            SourceError: the images are web addresses.
        """
        image: Any = record.cells.get("image")
        split = self._split.of(_none_if_empty(record.cells.get("split")))
        try:
            location, name, default = self._image(image, record)
            texts, ids, several = _captions(record)
        except BadCell as error:
            shown_key = image if is_path(image) and len(image) < 1000 else None
            yield Problem(record.origin, shown_key, None, "malformed row", str(error))
            return
        image_id = _none_if_empty(record.cells.get("image_id"))
        image_id = default if image_id is None else to_id(image_id)
        if not isinstance(split, str) or not is_id(image_id):
            detail = f"split is {_cell(split)}, image_id is {_cell(image_id)}"
            yield Problem(record.origin, name, None, "malformed row", detail)
            return
        captions, problems = usable_captions(
            texts, ids, origin=record.origin, key=image_id, split=split
        )
        # Other rows may have captions of the same image.
        yield from (p for p in problems if several or p.reason != "no caption")
        if captions:
            partial = self._joined and not several
            yield Row(split, image_id, captions, location, record.origin, name, partial=partial)

    def _image(self, image: Any, record: Record) -> tuple[Location, str, str]:
        """Return the location, name and default id of a record's image.

        Raises:
            BadCell: there is none.
            SourceError: it is the first, and a web address.
        """
        data, name = image_bytes(image)
        if data is not None:
            name = name or f"{self._file.name}#{record.origin.rpartition(' ')[2]}"
            return self._images.spool.add(data), name, name
        image = name or _single(image)
        if not is_path(image):
            keys = ", ".join(map(shown, map(str, record.keys[:8])))
            keys = f"; keys are {keys or 'none'}" if record.keys else ""
            raise BadCell(f"image is {_cell(image)}, not a path{keys}")
        first, self._first = self._first, False
        # One address among files is a reject of the build.
        if first and reach.is_web(image) and not reach.is_web(self._images.folder or ""):
            raise SourceError(f"{record.origin}: {shown(image)}: {_DOWNLOAD}")
        image = self._stripped(image)
        location, name = self._images.locate(image, self._file.folder)
        return location, name, self._default_id(image)

    def _default_id(self, image: str) -> str:
        """Return the id of an image without one: its path from the input's folder."""
        if self._images.folder is not None or os.path.isabs(image) or storage.is_url(image):
            return image
        return self._file.below + image

    def _stripped(self, image: str) -> str:
        """Return an image's name without Flickr's number of the caption."""
        found = _NUMBERED.fullmatch(image) if "#" in image else None
        if found is None:
            return image
        if self._strip is None:
            folder = self._images.folder or self._file.folder
            self._strip = not _is_there(folder, image)
            if self._strip:
                self._images.notes.say(f"the number after # is cut from names: {shown(image)}")
        return found[1] if self._strip else image


def _is_there(folder: str, name: str) -> bool:
    path = storage.locate(folder, name)
    return not reach.is_outside(path) and storage.file_size(path) >= 0


def _captions(record: Record) -> tuple[Any, Any, bool]:
    """Return texts, ids and whether a row holds several captions.

    Raises:
        BadCell: a list or conversation cannot be read.
    """
    value: Any = record.cells.get("caption")
    given_ids: Any = record.cells.get("caption_id")
    if record.several:
        found = [captions_of(cell) for cell in value]
        ids = ids_of(given_ids, found)
        if isinstance(ids, list) and len(ids) == len(found):
            pairs = [(t, i) for t, i in zip(found, ids, strict=True) if not is_empty(t)]
            return [text for text, _ in pairs], [one for _, one in pairs], True
        texts = [t for cell in found for t in (cell if isinstance(cell, list) else [cell])]
        return [text for text in texts if not is_empty(text)], ids, True
    read: Any = captions_of(value)
    if isinstance(read, list):
        return read, ids_of(given_ids, read), True
    if value is None and record.keys:
        keys = ", ".join(map(shown, map(str, record.keys[:8])))
        raise BadCell(f"has no caption; keys are {keys}; choose with --column caption=KEY,KEY")
    if is_empty(read):
        read = ""
    return [read] if isinstance(read, str) else read, ids_of(given_ids, read), False


def _single(image: Any) -> Any:
    """Return the only entry of a list of images.

    Raises:
        BadCell: it names several.
    """
    image = listed(image)
    if not isinstance(image, list):
        return image
    if len(image) != 1:
        raise BadCell(f"has {len(image)} images; a row has one")
    return image[0]


def _none_if_empty(value: Any) -> Any:
    return None if is_empty(value) else value


def _cell(value: Any) -> str:
    if isinstance(value, (bytes, dict)):
        return type(value).__name__
    return shown(repr(value))
