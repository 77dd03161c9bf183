"""``coco``: the official ``captions_*.json``, and captions of the same format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.folders import data_below
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import Problem, Row, is_id, load_json, usable_captions
from vse_shards.sources.finding import ImageFinder
from vse_shards.sources.splits import DEFAULT_SPLIT, find_split

_FILE = re.compile(r"captions_(([A-Za-z]+)\w*)\.json")


class CocoSource:
    """COCO's caption annotations, and others of its format under any name.

    The split is the one that `find_split` finds in the file's path, else that of
    ``captions_SPLIT.json``, else ``train``. Image and caption ids are the file's own.

    Args:
        path: one such file, or a folder with several: those named as COCO's own, else all that
            hold images and captions.
        images: folder with the images, or with folders ``train2014`` and so on; the default is
            the folder of the annotations or its parent.

    Raises:
        SourceError: there is no such file or folder.
    """

    kind: ClassVar[str] = "coco"
    options: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, path: str, images: str | None = None) -> None:
        self.notes = Notes()
        if storage.is_folder(path):
            folder = storage.require_input(path, folder=True)
            names = self._annotations(folder)
            self._files = [(storage.join(folder, name), name) for name in names]
            self._above = storage.base_name(folder)
        else:
            path = storage.require_input(path)
            folder = storage.parent(path)
            self._files = [(path, storage.base_name(path))]
            self._above = ""
        self.name = storage.base_name(self._files[0][0] if len(self._files) == 1 else folder)
        if images is not None:
            self._images = [storage.require_input(images, folder=True)]
        else:
            near = [folder, storage.parent(folder)]
            self._images = [*near, *(storage.join(above, "images") for above in near)]

    def _annotations(self, folder: str) -> list[str]:
        """Return a folder's files of captions: those named as COCO's own, else by content.

        Raises:
            SourceError: there is none.
        """
        found = data_below(folder, self.notes)
        names = [name for name in found if name.lower().endswith(".json")]
        official = [name for name in names if _FILE.fullmatch(name)]
        if official:
            return official
        held = [name for name in names if _has_captions(storage.join(folder, name))]
        if not held:
            raise SourceError(
                f"{folder}: has no captions_*.json, nor another .json of images and captions as "
                "COCO has them"
            )
        for name in sorted(set(names) - set(held)):
            self.notes.pass_over(".json files without captions as COCO has them", name)
        return held

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per image, in the order of the file's images.

        Raises:
            SourceError: a file is not one of COCO's.
        """
        for path, name in self._files:
            yield from self._file(path, name)

    def _file(self, path: str, relative: str) -> Iterator[Row | Problem]:
        name = storage.base_name(path)
        found = _FILE.fullmatch(name)
        folder, named = (found[1], found[2]) if found else ("", None)
        split, why = find_split(relative, self._above) or (
            (named, f'"{named}" in its name') if named else (DEFAULT_SPLIT, None)
        )
        self.notes.split(split, relative, why)
        content = load_json(path)
        try:
            images = _by_id(path, content["images"])
            texts: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in images}
            notes = [(n["image_id"], n.get("id"), n["caption"]) for n in content["annotations"]]
        except (KeyError, TypeError) as error:
            if not isinstance(content, dict):
                raise SourceError(
                    f"{path}: is a {type(content).__name__}, not COCO's object of images and "
                    "annotations; lists of rows are read with --source jsonl"
                ) from None
            raise SourceError(
                f"{path}: is not COCO's layout of images and annotations: {error!r}; its keys are "
                f"{shown(', '.join(content))}"
            ) from None
        for image_id, caption_id, text in notes:
            if is_id(image_id) and image_id in texts:
                texts[image_id].append({"id": caption_id, "text": text})
            else:
                caption, image = shown(str(caption_id)), shown(str(image_id))
                detail = f"caption {caption} is for image {image}, which is not listed"
                yield Problem(name, image_id, split, "caption for no image", detail)
        finder = ImageFinder(
            self._image_folder(folder, next(iter(images.values()), "")), self.notes.say
        )
        for image_id, file_name in images.items():
            origin = f"{name} image {image_id}"
            if not is_id(image_id):
                yield Problem(origin, None, split, "malformed row", "its id is no id")
                continue
            captions, problems = usable_captions(
                texts[image_id], None, origin=origin, key=image_id, split=split
            )
            yield from problems
            if captions:
                location, found_as = finder.locate(file_name)
                yield Row(split, image_id, captions, location, origin, found_as)

    def _image_folder(self, folder: str, first_image: str) -> str:
        """Return the folder that contains the first image, else that to look for images in."""
        folders = [p for base in self._images for p in (storage.join(base, folder), base)]
        whole = self._images[0]
        if storage.base_name(whole) == "annotations" and len(self._images) > 1:
            whole = self._images[1]  # COCO's own layout, with the images' folders beside it
        return next((p for p in folders if storage.is_file(storage.join(p, first_image))), whole)


def _has_captions(path: str) -> bool:
    """Return whether a file names what COCO's caption files do, without parsing it."""
    missing = [b'"images"', b'"annotations"', b'"caption"']
    try:
        with storage.open_binary(path) as file:
            end = b""
            while missing and (block := file.read(1 << 20)):
                missing = [word for word in missing if word not in end + block]
                end = block[-16:]
    except OSError:
        return False
    return not missing


def _by_id(path: str, entries: list[Any]) -> dict[Any, str]:
    """Return the file of each image id.

    Raises:
        SourceError: an id has two files; captions name the id alone.
    """
    files: dict[Any, str] = {}
    for entry in entries:
        name = str(entry["file_name"])
        known = files.setdefault(entry["id"], name)
        if known != name:
            raise SourceError(
                f"{path}: image id {shown(str(entry['id']))} is both {shown(known)} and "
                f"{shown(name)}, so that captions of the id are of one or the other; give each "
                "image its own id, or build the files apart and join the datasets with vse-shards "
                "merge --prefix-ids"
            )
    return files
