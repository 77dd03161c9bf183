"""``webdataset``: tars of image and text members, including img2dataset's output."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.images import IMAGE_SUFFIXES
from vse_shards.notes import Notes
from vse_shards.sources.base import (
    Location,
    Problem,
    Row,
    decode_line,
    is_id,
    is_unicode,
    usable_captions,
)
from vse_shards.sources.splits import DEFAULT_SPLIT, find_split
from vse_shards.sources.tabular.parquet import import_parquet

_MAX_TEXT = 16 << 20  # bytes of a caption or description


@dataclass
class _Group:
    """Image and text members of one key."""

    image: tarfile.TarInfo | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


class WebDatasetSource:
    """Samples of an image (``.jpg``, ``.png`` ...) and a ``.txt`` or ``.json`` of the same key.

    Captions are those under ``captions`` in the ``.json``, else the ``.txt`` as one caption, else
    ``caption`` or ``text`` in the ``.json``, else the ``caption`` of img2dataset's ``.parquet``
    beside the tar. ``image_id`` in the ``.json`` is the id, else tar and key. The split is the one
    that `find_split` finds in the tar's path, else ``train``.

    Args:
        path: path of a tar, or of a folder with tars at any depth.

    Raises:
        SourceError: there is no such file or folder, or no tar in it.
    """

    kind: ClassVar[str] = "webdataset"
    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, path: str) -> None:
        if storage.is_folder(path):
            folder = storage.require_input(path, folder=True)
            self.name = self._above = storage.base_name(folder)
            names = [name for name in storage.walk(folder) if name.endswith(".tar")]
            if not names:
                raise SourceError(f"{folder}: has no .tar in it (compressed ones are not read)")
            self._tars = [(storage.join(folder, name), name) for name in names]
        else:
            path = storage.require_input(path)
            self.name, self._above = storage.base_name(path), ""
            self._tars = [(path, self.name)]
        self.notes = Notes()

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per key, tar by tar in sorted order.

        Raises:
            SourceError: a tar disagrees with the img2dataset statistics beside it.
        """
        for path, name in self._tars:
            groups: dict[str, _Group] = {}
            try:
                with storage.open_binary(path) as file:
                    _read_groups(file, groups)
            except (OSError, tarfile.TarError) as error:
                yield Problem(name, None, None, "unreadable", f"after {len(groups)} keys: {error}")
            _check_statistics(path, sum(group.image is not None for group in groups.values()))
            table = _Table(path)
            split, why = find_split(name, self._above) or (DEFAULT_SPLIT, None)
            self.notes.split(split, name, why)
            for key, group in groups.items():
                yield from _row(path, name, split, key, group, table)


class _Table:
    """Captions by key from img2dataset's Parquet file, read on first use."""

    def __init__(self, tar: str) -> None:
        self._path = tar.removesuffix(".tar") + ".parquet"
        self._captions: dict[str, Any] | None = None

    def caption(self, key: str) -> Any:
        if self._captions is None:
            self._captions = self._read() if storage.is_file(self._path) else {}
        return self._captions.get(key)

    def _read(self) -> dict[str, Any]:
        parquet = import_parquet(self._path)
        try:
            with storage.open_binary(self._path) as file:
                table = parquet.ParquetFile(file).read(columns=["key", "caption"]).to_pydict()
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._path}: cannot be read as Parquet: {error}") from error
        return dict(zip(table.get("key", []), table.get("caption", []), strict=True))


def _read_groups(file: Any, groups: dict[str, _Group]) -> None:
    """Walk a tar; keep the headers of images and the content of texts."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isreg():
                continue
            folder, _, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not stem or not dot:
                continue
            group = groups.setdefault(f"{folder}/{stem}" if folder else stem, _Group())
            if f".{extension.lower()}" in IMAGE_SUFFIXES:
                group.image = group.image or member
            elif extension in ("txt", "json") and member.size <= _MAX_TEXT:
                content = archive.extractfile(member)
                group.texts[extension] = content.read() if content is not None else b""


def _check_statistics(tar: str, images: int) -> None:
    """Compare a tar with ``_stats.json``, which img2dataset writes when a shard is done."""
    path = tar.removesuffix(".tar") + "_stats.json"
    if not storage.is_file(path):
        return
    try:
        successes = json.loads(storage.read_bytes(path))["successes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path}: cannot be read as img2dataset's statistics: {error!r}"
        ) from None
    if successes != images:
        raise SourceError(
            f"{tar}: has {images} images, {storage.base_name(path)} says {successes}; the download "
            "was interrupted, run img2dataset again"
        )


def _row(
    tar: str, name: str, split: str, key: str, group: _Group, table: _Table
) -> Iterator[Row | Problem]:
    origin = f"{name}: {key}"
    if not is_unicode(origin):
        shown = origin.encode(errors="surrogateescape").decode(errors="backslashreplace")
        yield Problem(shown, None, split, "malformed row", "its name is not UTF-8")
        return
    image_id: Any = f"{os.path.splitext(name)[0]}/{key}"
    if group.image is None:
        detail = f"it has {', '.join('.' + e for e in group.texts) or 'nothing'} alone"
        yield Problem(origin, image_id, split, "caption for no image", detail)
        return
    description: Any = {}
    if "json" in group.texts:
        try:
            description = json.loads(group.texts["json"])
        except (ValueError, RecursionError) as error:
            yield Problem(origin, image_id, split, "malformed row", f".json: {error}")
            return
    if not isinstance(description, dict):
        description = {}
    if is_id(description.get("image_id")):
        image_id = description["image_id"]
    captions, problems = usable_captions(
        _captions(group, description, table, key), None, origin=origin, key=image_id, split=split
    )
    yield from problems
    if captions:
        location = Location(tar, group.image.offset_data, group.image.size)
        yield Row(split, image_id, captions, location, origin, origin)


def _captions(group: _Group, description: dict[str, Any], table: _Table, key: str) -> list[Any]:
    if isinstance(description.get("captions"), list):
        return list(description["captions"])
    if "txt" in group.texts:
        return [decode_line(group.texts["txt"])]
    for name in ("caption", "text"):
        if description.get(name) is not None:
            return [description[name]]
    caption = table.caption(key)
    return [] if caption is None else [caption]
