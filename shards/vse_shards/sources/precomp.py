"""``precomp``: the lists of VSE++, SCAN and VSE-infinity, with images, regions or both."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.notes import Notes
from vse_shards.npy import open_npy
from vse_shards.sources.base import (
    Location,
    Problem,
    RegionsAt,
    Row,
    decode_line,
    load_json,
    usable_captions,
)

_BUTD = re.compile(r"\.(tsv(\.\d+)?|h5|hdf5|npz)$")
_IMAGE_FOLDERS = ("images", "flickr30k-images", "flickr8k-images")


class PrecompSource:
    """``{split}_ids.txt``, ``{split}_caps.txt`` and optional ``{split}_ims.npy``.

    Ids list each image once, or once per caption. Regions are (images, regions, channels) with a
    row per image or per caption; the file is mapped into memory, not loaded. Without ids, images
    are numbered, and have regions alone.

    Args:
        path: folder of the lists, or the folder above ``precomp``.
        images: folder that the paths of ``id_mapping.json`` are relative to; the default is
            ``images`` or ``flickr30k-images`` beside ``precomp``.
        wanted: splits to read. None reads all, except ``test`` if there is ``testall``, which has
            the same images.
        use_images: False omits the images.
        use_regions: False omits the region features.

    Raises:
        SourceError: there is no such folder, or it has no such lists.
    """

    kind: ClassVar[str] = "precomp"
    options: ClassVar[frozenset[str]] = frozenset({"images", "wanted", "use_images", "use_regions"})

    def __init__(
        self,
        path: str,
        images: str | None = None,
        wanted: Collection[str] | None = None,
        *,
        use_images: bool = True,
        use_regions: bool = True,
    ) -> None:
        self._folder = storage.require_input(path, folder=True)
        self._above = self._folder
        inner = storage.join(self._folder, "precomp")
        if storage.is_folder(inner):
            self._folder = inner
        elif storage.base_name(self._folder) == "precomp":
            self._above = storage.parent(self._folder)
        self.name = storage.base_name(self._above)
        self.notes = Notes()
        self._splits = self._find_splits(wanted)
        self._use_regions = use_regions
        self._images = self._find_images(images) if use_images else None

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per image, split by split, in the order of the ids.

        Raises:
            SourceError: lists that belong together disagree, or there is neither image nor region.
        """
        mapping: dict[str, str] | None = None
        for split in self._splits:
            if not storage.is_file(storage.join(self._folder, f"{split}_ids.txt")):
                yield from self._numbered(split)
                continue
            if mapping is None:
                mapping = self._mapping() if self._images is not None else {}
            yield from self._split(split, mapping)

    def _find_splits(self, wanted: Collection[str] | None) -> list[str]:
        names = [name for name in storage.walk(self._folder) if "/" not in name]
        found = [name.removesuffix("_ids.txt") for name in names if name.endswith("_ids.txt")]
        # SGRAF and others read captions and regions alone, and ship no ids.
        alone = [name.removesuffix("_caps.txt") for name in names if name.endswith("_caps.txt")]
        found += [s for s in alone if s not in found and f"{s}_ims.npy" in names]
        found.sort()
        if wanted is not None:
            found = [split for split in found if split in wanted]
        elif "testall" in found and "test" in found:
            found.remove("test")
        if not found:
            asked = f" of {', '.join(sorted(wanted))}" if wanted else ""
            butd = any(_BUTD.search(name) for name in names)
            other = "; its .tsv, .h5 or .npz may be --source butd's" if butd else ""
            raise SourceError(
                f"{self._folder}: has no *_ids.txt, nor *_caps.txt with *_ims.npy{asked}{other}"
            )
        return found

    def _find_images(self, images: str | None) -> str | None:
        if images is not None:
            return storage.require_input(images, folder=True)
        folders = (storage.join(self._above, name) for name in _IMAGE_FOLDERS)
        return next((folder for folder in folders if storage.is_folder(folder)), None)

    def _mapping(self) -> dict[str, str]:
        for folder in (self._above, self._folder):
            path = storage.join(folder, "id_mapping.json")
            if storage.is_file(path):
                content = load_json(path)
                if not isinstance(content, dict):
                    raise SourceError(f"{path}: is not an object of file names by id")
                return {str(image_id): str(name) for image_id, name in content.items()}
        raise SourceError(
            f"{self._above}: has no id_mapping.json, which maps ids to files; add it, or "
            "omit the images with --no-images"
        )

    def _split(self, split: str, mapping: dict[str, str]) -> Iterator[Row | Problem]:
        ids = [line.strip() for line in self._lines(f"{split}_ids.txt")]
        self.notes.split(split, f"{split}_ids.txt", f'"{split}" in its name')
        captions = self._lines(f"{split}_caps.txt")
        per_image = self._captions_per_image(split, ids, len(captions))
        images = len(captions) // per_image
        ids = ids if len(ids) == images else ids[::per_image]
        regions = self._regions(split, images, len(captions))
        if regions is None and self._images is None:
            raise SourceError(
                f"{self._folder}: split {split!r} has neither images nor {split}_ims.npy; give "
                "--images"
            )
        for number, raw_id in enumerate(ids):
            first = number * per_image
            origin = f"{split}_ids.txt image {number}"
            text = decode_line(raw_id)
            if not text:
                yield Problem(origin, None, split, "malformed row", f"id is {raw_id!r}")
                continue
            image_id = int(text) if text.isdecimal() and str(int(text)) == text else text
            yield from self._row(
                split,
                image_id,
                [decode_line(line) for line in captions[first : first + per_image]],
                mapping.get(text),
                RegionsAt(regions[0], number * regions[1]) if regions else None,
                origin,
            )

    def _numbered(self, split: str) -> Iterator[Row | Problem]:
        """Yield the rows of a split without ids: regions and captions by their order alone."""
        self.notes.split(split, f"{split}_caps.txt", f'"{split}" in its name')
        captions = self._lines(f"{split}_caps.txt")
        if not self._use_regions:
            raise SourceError(
                f"{self._folder}: {split}_ids.txt is not there, so no image can be found for a "
                "caption; omit --no-regions, or the split with --split"
            )
        path = storage.join(self._folder, f"{split}_ims.npy")
        per_image, repeats = self._per_image(split, path, len(captions))
        self.notes.say(
            f"{split}_ids.txt is not there: images are numbered {split}/0, {split}/1 ..., with "
            f"{per_image} captions each, and have regions alone"
        )
        for number in range(len(captions) // per_image):
            first = number * per_image
            texts = [decode_line(line) for line in captions[first : first + per_image]]
            image_id, origin = f"{split}/{number}", f"{split}_caps.txt image {number}"
            found, problems = usable_captions(
                list(texts), None, origin=origin, key=image_id, split=split
            )
            yield from problems
            if found:
                at = RegionsAt(path, number * repeats)
                yield Row(split, image_id, found, None, origin, image_id, at)

    def _per_image(self, split: str, path: str, captions: int) -> tuple[int, int]:
        """Return the captions and the rows of regions of each image, where there are no ids."""
        array = _mapped(path)
        rows = len(array) if array.ndim else 0
        if not rows or not captions or captions % rows:
            raise SourceError(
                f"{path}: has {rows:,} rows, and {split}_caps.txt {captions:,} captions; without "
                f"{split}_ids.txt there must be a whole number of captions per row"
            )
        if captions > rows:
            return captions // rows, 1
        # VSE++ repeats an image's row for each of its captions.
        repeats = next((n for n in range(1, rows) if not np.array_equal(array[n], array[0])), rows)
        return (repeats, repeats) if rows % repeats == 0 else (1, 1)

    def _row(
        self,
        split: str,
        image_id: str | int,
        texts: list[str | None],
        file_name: str | None,
        regions: RegionsAt | None,
        origin: str,
    ) -> Iterator[Row | Problem]:
        captions, problems = usable_captions(texts, None, origin=origin, key=image_id, split=split)
        yield from problems
        if self._images is not None and file_name is None:
            detail = f"id_mapping.json has no file for id {image_id}"
            yield Problem(origin, image_id, split, "missing image", detail)
        elif captions:
            location = (
                file_name and self._images and Location(storage.locate(self._images, file_name))
            )
            name = file_name or str(image_id)
            yield Row(split, image_id, captions, location or None, origin, name, regions)

    def _captions_per_image(self, split: str, ids: list[bytes], captions: int) -> int:
        """Return the captions per image, from ids that are listed once or once per caption."""
        if not ids or not captions or captions % len(ids):
            raise SourceError(
                f"{self._folder}: {split}_ids.txt has {len(ids):,} ids and {split}_caps.txt "
                f"{captions:,} captions; there must be a whole number of captions per id"
            )
        if captions > len(ids):
            return captions // len(ids)
        repeats = next((n for n, one in enumerate(ids) if one != ids[0]), len(ids))
        if captions % repeats or any(
            len(set(ids[start : start + repeats])) != 1 for start in range(0, len(ids), repeats)
        ):
            raise SourceError(
                f"{self._folder}: {split}_ids.txt repeats its first id {repeats} times, but not "
                "every id"
            )
        return repeats

    def _regions(self, split: str, images: int, captions: int) -> tuple[str, int] | None:
        """Return the region file and its number of rows per image, or None without a file."""
        path = storage.join(self._folder, f"{split}_ims.npy")
        if not self._use_regions or not storage.is_file(path):
            return None
        array = _mapped(path)
        rows = len(array) if array.ndim else 0
        if rows not in (images, captions):
            raise SourceError(
                f"{path}: has {rows:,} rows for {images:,} images and {captions:,} captions; "
                "it must have one per image or one per caption"
            )
        return path, rows // images

    def _lines(self, name: str) -> list[bytes]:
        path = storage.join(self._folder, name)
        try:
            lines = storage.read_bytes(path).split(b"\n")
        except OSError as error:
            raise SourceError(
                f"{path}: cannot be read: {error.strerror or error}; omit the split with --split"
            ) from None
        return lines[:-1] if lines[-1] == b"" else lines


def _mapped(path: str) -> NDArray[Any]:
    if storage.is_url(path):
        raise SourceError(f"{path}: region files must be on this machine to be mapped")
    try:
        return open_npy(path, any_order=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as .npy: {error}") from error
