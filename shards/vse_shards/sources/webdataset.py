"""``webdataset``: tars of image and text members, including img2dataset's output."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.folders import data_below
from vse_shards.json_text import parse_json
from vse_shards.notes import Notes, shown
from vse_shards.opening import IMAGE_SUFFIXES
from vse_shards.sources.base import (
    INCOMPLETE,
    Location,
    Problem,
    Row,
    decode_line,
    is_id,
    is_unicode,
    usable_captions,
)
from vse_shards.sources.declared import ENERGON, FolderSplits
from vse_shards.sources.samples import MAX_TEXT, TEXTS, Part, TarSamples
from vse_shards.sources.splits import DEFAULT_SPLIT, find_split, named_by_folder
from vse_shards.sources.tabular.cells import BadCell
from vse_shards.sources.tabular.keys import CaptionKeys, as_list
from vse_shards.sources.tabular.parquet import import_parquet
from vse_shards.sources.tars import START, compression

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_MAX_NAME = 4096  # bytes of a path on Linux
_IN_MEMORY = 1 << 20  # bytes of members' descriptions before they go to a temporary file


class WebDatasetSource:
    """Samples of an image (``.jpg``, ``.png`` ...) and a ``.txt`` or ``.json`` of the same key.

    Captions are those under ``captions`` in the ``.json``, else the ``.txt``, a caption a line,
    else ``caption`` or ``text`` in the ``.json``, else the ``caption`` of img2dataset's
    ``.parquet`` beside the tar, else another common name in the ``.json``. ``image_id`` in the
    ``.json`` is the id, else tar and key. The split is the one that Energon's
    ``.nv-meta/split.yaml`` or the ``configs`` of a dataset card (``README.md``) give the tar, else
    that which `find_split` finds in its path, else that of a folder in the tar whose name is a
    split word, else ``train``.

    Args:
        path: path of a tar, or of a folder with tars at any depth.
        columns: ``caption``: the key or keys of the ``.json`` that hold captions.
        allow_missing: set tars aside that are not what img2dataset's statistics say.

    Raises:
        SourceError: there is no such file or folder, or no tar in it, or a compressed one.
    """

    kind: ClassVar[str] = "webdataset"
    options: ClassVar[frozenset[str]] = frozenset({"allow_missing", "columns"})

    def __init__(
        self, path: str, *, columns: Mapping[str, str] | None = None, allow_missing: bool = False
    ) -> None:
        self.notes = Notes()
        self._keys = CaptionKeys(columns, self.kind)
        self._allow_missing = allow_missing
        self._absent: list[tuple[str, str]] = []
        self._splits: FolderSplits | None
        if not storage.is_folder(path):
            path = storage.require_input(path)
            self.name, self._splits = storage.base_name(path), None
            self._tars = [(path, self.name)]
            return
        folder = storage.require_input(path, folder=True)
        self.name = storage.base_name(folder)
        found = data_below(folder, self.notes)
        names = [name for name in found if name.lower().endswith(".tar")]
        _refuse_packed(folder, found, set(names))
        if not names:
            raise SourceError(f"{folder}: has no .tar in it; check the path")
        self._tars = [(storage.join(folder, name), name) for name in names]
        self._splits = FolderSplits(folder, found, names, self.notes)
        there = set(names)
        for name in found:
            tar = f"{name.removesuffix('_stats.json')}.tar"
            if name.endswith("_stats.json") and tar not in there:
                self._absent.append((storage.join(folder, tar), tar))

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per key, tar by tar in sorted order.

        Raises:
            SourceError: a tar is compressed, or disagrees with img2dataset's statistics.
        """
        for path, name in self._absent:
            yield from self._check(path, name, None)
        for path, name in self._tars:
            found = self._splits.of(name) if self._splits else find_split(name)
            if found is not None or not self._splits:
                yield from self._tar(path, name, found or (DEFAULT_SPLIT, None))
        self._keys.check(self.name)

    def _tar(self, path: str, name: str, found: tuple[str, str | None]) -> Iterator[Row | Problem]:
        try:
            with storage.open_binary(path) as file:
                if compression(file.read(START)):
                    raise SourceError(f"{path}: holds {_packed(*os.path.split(path))}")
                with SpooledTemporaryFile(_IN_MEMORY) as spill:
                    samples = TarSamples(file, spill, shown(name), self.notes)
                    yield from self._samples(path, name, found, samples)
        except OSError as error:
            yield Problem(name, None, None, INCOMPLETE, str(error))

    def _samples(
        self, path: str, name: str, found: tuple[str, str | None], samples: TarSamples
    ) -> Iterator[Row | Problem]:
        listing = samples.listing
        if listing.fault:
            self.notes.say(
                f"{shown(name)}: is damaged after {listing.keys:,} keys, and read up to there: "
                f"{listing.fault}"
            )
            detail = f"after {listing.keys} keys: {listing.fault}"
            yield Problem(name, None, None, INCOMPLETE, detail)
        aside = list(self._check(path, name, listing.images))
        if aside:
            yield from aside
            return
        excluded = self._splits.excluded if self._splits else set()
        tar = _Tar(path, name, samples, _Table(path), self._keys, self.notes)
        told = set()
        for key, parts in samples:
            if f"{name}/{key}" in excluded:
                self.notes.pass_over(f"samples that {ENERGON} excludes", f"{name}/{key}")
                continue
            split, why = found if found[1] else named_by_folder(key) or found
            if split not in told:
                told.add(split)
                self.notes.split(split, name, why)
            for stem, own in _by_stem(key, parts, tar):
                yield from _row(tar, stem, own, split)

    def _check(self, path: str, name: str, images: int | None) -> Iterator[Problem]:
        """Compare a tar with ``_stats.json``, which img2dataset writes when a shard is done.

        Args:
            path: path of the tar.
            name: its name in messages.
            images: number of its images; None if there is no such tar.
        """
        statistics = path.removesuffix(".tar") + "_stats.json"
        if not storage.is_file(statistics):
            return
        try:
            successes = parse_json(storage.read_bytes(statistics))["successes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{statistics}: cannot be read as img2dataset's statistics: {shown(repr(error))}"
            ) from None
        if successes == images or (images is None and not successes):
            return
        has = "is missing" if images is None else f"has {images} images"
        detail = f"{has}, {storage.base_name(statistics)} says {shown(repr(successes))}"
        if not self._allow_missing:
            raise SourceError(
                f"{path}: {detail}; the download was interrupted, or the tar filtered: run "
                "img2dataset again, or set such tars aside with --allow-missing"
            )
        self.notes.say(f"{shown(name)}: {detail}; it is set aside")
        yield Problem(name, None, None, INCOMPLETE, detail)


@dataclass(frozen=True)
class _Tar:
    """One tar while its samples become rows."""

    path: str
    name: str
    samples: TarSamples
    table: _Table
    keys: CaptionKeys
    notes: Notes


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


def _refuse_packed(folder: str, names: list[str], tars: set[str]) -> None:
    """Refuse a folder with a compressed tar that does not lie unpacked beside it.

    Raises:
        SourceError: there is such a tar.
    """
    for name in names:
        suffix = _suffix(name)
        if suffix and f"{name[: -len(suffix)]}.tar" not in tars:
            raise SourceError(f"{folder}: has no .tar of {_packed(folder, name)}")


def _suffix(name: str) -> str:
    return next((one for one in _PACKED if name.lower().endswith(one)), "")


def _packed(folder: str, name: str) -> str:
    """Return the end of a message about a compressed tar."""
    path, suffix = storage.join(folder, name), _suffix(name)
    with storage.open_binary(path) as file:
        kind, command = compression(file.read(START)) or ("compressed", "gzip -dc")
    packed = shlex.quote(path)
    plain = shlex.quote(f"{path[: -len(suffix)]}.tar" if suffix else f"{path}.plain")
    more = "" if suffix else f" && mv {plain} {packed}"
    return (
        f"{shown(name)}, which is {kind}; images are read from tars where they lie: unpack it with "
        f"{command} {packed} > {plain}{more}"
    )


def _by_stem(key: str, parts: list[Part], tar: _Tar) -> Iterator[tuple[str, list[Part]]]:
    """Divide a key's members at the last dot if none belongs to the key by the first."""
    counted = [part for part in parts if part.counts]
    plain = [part for part in counted if "." not in part.extension]
    dotted: dict[str, list[Part]] = {}
    for part in counted:
        if "." in part.extension:
            stem = f"{key}.{part.extension.rpartition('.')[0]}"
            dotted.setdefault(stem, []).append(part)
    if plain or not dotted:
        pairs = (stem for stem, own in dotted.items() if len(own) > 1 and _has_text(own))
        unread = next(pairs, None)
        if unread is not None:
            tar.notes.say(
                f"{shown(tar.name)}: members of names such as {shown(unread)} belong to key "
                f"{shown(key)}, as webdataset has it, and are not read; name them without the dot"
            )
        yield key, plain or parts
        return
    stem = next(iter(dotted))
    tar.notes.say(
        f"names are divided at their last dot where the first gives no sample: {shown(stem)} is "
        f"a key in {shown(tar.name)}"
    )
    yield from dotted.items()


def _has_text(parts: list[Part]) -> bool:
    return any(part.last in TEXTS for part in parts)


# One check after the other, each with its own reject.
def _row(tar: _Tar, key: str, parts: list[Part], split: str) -> Iterator[Row | Problem]:
    origin = f"{tar.name}: {key}"
    if not is_unicode(origin) or len(origin) > _MAX_NAME:
        fault = "its name is not UTF-8" if len(origin) <= _MAX_NAME else "its name is too long"
        yield Problem(shown(origin), None, split, "malformed row", fault)
        return
    image_id: Any = f"{os.path.splitext(tar.name)[0]}/{key}"

    def problem(reason: str, detail: str) -> Problem:
        return Problem(origin, image_id, split, reason, detail)

    by_kind: dict[str, list[Part]] = {}
    for part in parts:
        if part.counts:
            by_kind.setdefault(part.last, []).append(part)
    twice = next((kind for kind, same in by_kind.items() if len(same) > 1), None)
    if twice is not None:
        detail = f"its .{twice} is in the tar {len(by_kind[twice])} times"
        yield problem("duplicate member", detail)
        return
    images = [same[0] for kind, same in by_kind.items() if f".{kind}" in IMAGE_SUFFIXES]
    texts = {kind: by_kind[kind][0] for kind in TEXTS if kind in by_kind}
    if not images:
        held = dict.fromkeys(f".{kind}" for kind in texts)
        yield problem("caption for no image", f"it has {', '.join(held) or 'nothing'} alone")
        return
    if len(images) > 1:
        tar.notes.say(
            f"{shown(tar.name)}: {shown(key)} has several images, "
            f"{' and '.join(f'.{part.last}' for part in images[:3])}; the first is taken"
        )
    for part in (images[0], *texts.values()):
        if fault := _fault(part):
            yield problem("unreadable", f"its .{part.last} {fault}")
            return
    try:
        described = tar.samples.text(texts["json"]) if "json" in texts else b"{}"
        description = parse_json(described, surrogates=True)
    except ValueError as error:
        yield problem("malformed row", f".json: {error}")
        return
    if not isinstance(description, dict):
        description = {}
    if is_id(description.get("image_id")):
        image_id = description["image_id"]
    text = tar.samples.text(texts["txt"]) if "txt" in texts else None
    try:
        found = _captions(text, description, tar, key)
    except BadCell as error:
        yield problem("malformed row", f".json: {error}")
        return
    captions, problems = usable_captions(found, None, origin=origin, key=image_id, split=split)
    yield from problems
    if captions:
        location = Location(tar.path, images[0].offset, images[0].size)
        yield Row(split, image_id, captions, location, origin, origin)


def _fault(part: Part) -> str:
    """Return why a member has no content to read, "" if it has."""
    if part.kind in ("link", "symlink"):
        return (
            f"is a link to {shown(part.target)}, which is no file of the tar: pack the file itself "
            "with tar --dereference"
        )
    if part.kind == "sparse":
        return "is a sparse file: pack it without tar --sparse"
    if part.last in TEXTS and part.size > MAX_TEXT:
        return f"has {part.size:,} bytes, limit {MAX_TEXT:,}"
    return ""


def _captions(text: bytes | None, description: dict[str, Any], tar: _Tar, key: str) -> list[Any]:
    if tar.keys.chosen:
        return tar.keys.captions(description)
    if isinstance(description.get("captions"), list):
        return list(description["captions"])
    if text is not None:
        whole = decode_line(text)
        # img2dataset repeats the text in the description, so its line ends belong to one caption.
        if whole is not None and description.get("caption") in (whole, text.decode("utf-8-sig")):
            return [whole]
        lines = [decode_line(line) for line in text.split(b"\n") if line.strip()]
        if len(lines) > 1:
            tar.notes.say("a .txt of several lines holds several captions, one a line")
        return lines or [whole]
    values = (description.get(name) for name in ("caption", "text"))
    named = next((value for value in values if value is not None), None)
    found = tar.table.caption(key) if named is None else named
    return tar.keys.captions(description) if found is None else as_list(found)
