"""``webdataset``: tars of image and text members, including img2dataset's output."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from tempfile import SpooledTemporaryFile
from typing import ClassVar

from vse_shards import storage
from vse_shards.errors import SourceError
from vse_shards.folders import data_below
from vse_shards.json_text import parse_json
from vse_shards.notes import Notes, shown
from vse_shards.sources.base import INCOMPLETE, Problem, Row
from vse_shards.sources.declared import ENERGON, FolderSplits
from vse_shards.sources.packed import PACKED, Unpacked, is_tar_name, stem_of
from vse_shards.sources.samples import TarSamples
from vse_shards.sources.splits import DEFAULT_SPLIT, find_split, named_by_folder
from vse_shards.sources.tabular.keys import CaptionKeys
from vse_shards.sources.tar_rows import CaptionsBeside, Tar, by_stem, row_of

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
        path: path of a tar, or of a folder with tars at any depth; compressed or not.
        columns: ``caption``: the key or keys of the ``.json`` that hold captions.
        allow_missing: set tars aside that are not what img2dataset's statistics say.

    Raises:
        SourceError: there is no such file or folder, or no tar in it.
    """

    kind: ClassVar[str] = "webdataset"
    options: ClassVar[frozenset[str]] = frozenset({"allow_missing", "columns"})

    def __init__(
        self, path: str, *, columns: Mapping[str, str] | None = None, allow_missing: bool = False
    ) -> None:
        self.notes = Notes()
        self._keys = CaptionKeys(columns, self.kind)
        self._allow_missing = allow_missing
        self._unpacked = Unpacked(self.notes)
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
        names = self._tars_of(found)
        if not names:
            zipped = next((name for name in found if name.lower().endswith(".zip")), None)
            if zipped is not None:
                path = storage.join(folder, zipped)
                raise SourceError(
                    f"{folder}: has no .tar in it, but {shown(zipped)}: read each zip with "
                    f"--source folder --input {shlex.quote(path)}"
                )
            raise SourceError(f"{folder}: has no .tar in it; check the path")
        self._tars = [(storage.join(folder, name), name) for name in names]
        self._splits = FolderSplits(folder, found, names, self.notes)
        there = set(map(stem_of, names))
        for name in found:
            stem = name.removesuffix("_stats.json")
            if name.endswith("_stats.json") and stem not in there:
                tar = f"{stem}.tar"
                self._absent.append((storage.join(folder, tar), tar))

    def _tars_of(self, found: list[str]) -> list[str]:
        """Return the tars among files; of one that is there packed and unpacked, the latter."""
        names = list(filter(is_tar_name, found))
        plain = {stem_of(name) for name in names if name.lower().endswith(".tar")}
        kept = []
        for name in names:
            if name.lower().endswith(PACKED) and stem_of(name) in plain:
                self.notes.pass_over("compressed tars that lie beside the plain ones", name)
            else:
                kept.append(name)
        return kept

    def rows(self) -> Iterator[Row | Problem]:
        """Yield a row per key, tar by tar in sorted order.

        Raises:
            SourceError: a tar disagrees with img2dataset's statistics, or cannot be unpacked.
        """
        for path, name in self._absent:
            yield from self._check(path, name, None)
        for path, name in self._tars:
            found = self._splits.of(name) if self._splits else find_split(name)
            if found is not None or not self._splits:
                yield from self._tar(path, name, found or (DEFAULT_SPLIT, None))
        self._unpacked.tell()
        self._keys.check(self.name)

    def _tar(self, path: str, name: str, found: tuple[str, str | None]) -> Iterator[Row | Problem]:
        try:
            plain, fault = self._unpacked.tar(path)
            with storage.open_binary(plain) as file, SpooledTemporaryFile(_IN_MEMORY) as spill:
                samples = TarSamples(file, spill, shown(name), self.notes)
                samples.listing.fault = fault or samples.listing.fault
                tar = Tar(
                    plain,
                    name,
                    stem_of(name),
                    samples,
                    CaptionsBeside(stem_of(path)),
                    self._keys,
                    self.notes,
                )
                yield from self._samples(path, tar, found)
        except OSError as error:
            yield Problem(name, None, None, INCOMPLETE, str(error))

    def _samples(
        self, path: str, tar: Tar, found: tuple[str, str | None]
    ) -> Iterator[Row | Problem]:
        name, listing = tar.name, tar.samples.listing
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
        told = set()
        for key, parts in tar.samples:
            if f"{name}/{key}" in excluded:
                self.notes.pass_over(f"samples that {ENERGON} excludes", f"{name}/{key}")
                continue
            split, why = found if found[1] else named_by_folder(key) or found
            if split not in told:
                told.add(split)
                self.notes.split(split, name, why)
            for stem, own in by_stem(key, parts, tar):
                yield from row_of(tar, stem, own, split)

    def _check(self, path: str, name: str, images: int | None) -> Iterator[Problem]:
        """Compare a tar with ``_stats.json``, which img2dataset writes when a shard is done.

        Args:
            path: path of the tar.
            name: its name in messages.
            images: number of its images; None if there is no such tar.
        """
        statistics = f"{stem_of(path)}_stats.json"
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
