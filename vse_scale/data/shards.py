"""Read images and captions of one split by index, from memory-mapped shards."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vse_scale.console import heartbeat
from vse_scale.data.features import StoredFeatures
from vse_scale.data.recent import Recent, map_file, most_maps
from vse_scale.data.staged import Counts
from vse_scale.data.staging import StagingCache, StagingOptions, default_folder
from vse_scale.errors import DatasetError
from vse_shards.columns import ColumnFile, ColumnSplit, TabledRecord, open_column
from vse_shards.index import Index
from vse_shards.info import parse_description
from vse_shards.manifest import (
    Manifest,
    ShardRecord,
    checked_index,
    checked_table,
    shard_index,
    shard_table,
)
from vse_shards.regions import load_regions
from vse_shards.shuffle import source_positions
from vse_shards.sources import Caption
from vse_shards.storage import is_url

__all__ = ["Caption", "ImageRecord", "Kind", "ShardDataset"]

Kind = Literal["images", "regions"]

_TAR_HEADER = 512
_TAR_NAME = 100
_EXTENSIONS: dict[Kind, str] = {"images": "jpg", "regions": "npy"}
_FEW_SHARDS = 1000  # whose indices are all read when a split is opened, and kept
_KEPT_SAMPLES = 1 << 22  # of binary indices that are kept: 64 MB with images alone
_INDEX_THREADS = 16  # indices are small, so latency dominates

_OPEN: weakref.WeakSet[ShardDataset] = weakref.WeakSet()  # of this process


@dataclass(frozen=True)
class ImageRecord:
    """Metadata of an image; width and height in pixels, 0 for region features alone."""

    image_id: int | str
    captions: list[Caption[int | str]]
    width: int
    height: int


class ShardDataset:
    """The images of one split, indexed in the order of its shards.

    A shard's file is mapped when it is first read. All datasets of a process together map at most a
    quarter of the files that it may open; the one that was read longest ago makes room.

    The indices of up to 1,000 shards are read when the split is opened; of more, and of a dataset
    in columns (version 2 of the format), each is read and compared with the manifest when it is
    first needed. What a dataset in columns takes to open grows with its shards; of its images it
    reads a byte each.

    The shards of a remote dataset are copied to this machine as they are read. Reading in order
    fetches a few shards ahead; a reader in another order announces its shards by `prepare`.

    Attributes:
        folder: folder of the dataset, or its URL.
        split: name of the open split.
        splits: names of all splits of the folder.
        remote: whether the folder is a URL.
        captions_per_sample: (I,) of the smallest integer type, from the manifest or its column.
        pairs: number of captions in the split.
        shard_sizes: images of each shard.
        shard_digests: sha256 of each shard.
        features: of a frozen image tower, which training and validation read in place of the
            images; None: there are none.
        fingerprint: digest of the whole dataset folder.
    """

    def __init__(
        self, folder: str | Path, split: str, staging: StagingOptions | None = None
    ) -> None:
        """Check the split's files against the manifest: sizes of tars, digests of indices.

        Args:
            folder: folder of the dataset, or its URL.
            split: name of the split to open.
            staging: local copies of a remote dataset's shards; None: the defaults.

        Raises:
            DatasetError: there is no such split, or a file disagrees with the manifest; the
                message names the file and both values.
        """
        self.remote = is_url(str(folder))
        self.folder = str(folder).rstrip("/") if self.remote else Path(folder)
        options = staging or StagingOptions()
        self._options = options
        # A reference to itself would keep this object, and its files open, until a collection.
        opener = partial(_staged_column, weakref.ref(self)) if self.remote else None
        manifest = Manifest.load(self.folder, opener)
        self._content = manifest.split(split, self.folder)
        self._shards = self._content.shards
        if not self._shards:
            raise DatasetError(f"{folder}: split {split!r} has no images; build it from more rows")
        self._manifest = manifest
        self.split = split
        self.splits = tuple(manifest.splits)
        self.fingerprint = manifest.fingerprint
        self.shard_sizes: list[int] = self._content.samples().tolist()
        self.shard_digests = self._content.digests()
        self.features: StoredFeatures | None = None
        self.captions_per_sample: npt.NDArray[Any] = self._content.captions_per_sample()
        self.pairs = self._content.pairs
        self._first = np.concatenate([[0], np.cumsum(self.shard_sizes)]).astype(np.int64)
        self._few = len(self._shards) <= _FEW_SHARDS and not manifest.in_columns
        _OPEN.add(self)
        self._tars: Recent[npt.NDArray[np.uint8]] = Recent(_map_share)
        kept = _KEPT_SAMPLES if manifest.in_columns else _FEW_SHARDS
        self._indices: Recent[Index] = Recent(lambda: kept)
        self._compared: set[int] = set()  # shards whose binary indices were compared
        self._prepared: frozenset[int] = frozenset()
        if isinstance(self.folder, Path):
            manifest.check_sizes(self.folder, split)
        else:
            self._check_room(self.folder)
        if self._few:  # with more, an index is read and compared when its shard is first read
            self._read_indices()

    @property
    def former(self) -> dict[str, int]:
        """The datasets that this one begins with: shards of the split by fingerprint, oldest first.

        They are those that rows were appended to, see `vse_shards.append`.
        """
        return {
            addition["fingerprint"]: int(addition["shards"].get(self.split, 0))
            for addition in self._manifest.source.get("appended", [])
            if "fingerprint" in addition and "shards" in addition
        }

    @property
    def dataset_sizes(self) -> Sequence[int]:
        """Images of each dataset folder: of this one alone."""
        return (len(self),)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Digest of each dataset folder: of this one alone."""
        return (self.fingerprint,)

    def grew_from(self, fingerprint: str, parts: Sequence[str] = ()) -> bool:
        """Return whether this is the dataset of that fingerprint with rows appended."""
        return fingerprint in self.former

    @cached_property
    def _cache(self) -> StagingCache:
        options = self._options
        cache = StagingCache(
            str(self.folder),
            self._cache_folder,
            options.limit_bytes,
            folder_name=options.folder_name,
            limit_name=options.limit_name,
            on_block=options.on_block,
        )
        weakref.finalize(self, cache.close)
        return cache

    @property
    def _cache_folder(self) -> Path:
        return Path(self._options.folder) if self._options.folder else default_folder()

    def _check_room(self, url: str) -> None:
        options = self._options
        needed = self.room(1 + options.ahead)
        if options.limit_bytes < needed:
            raise DatasetError(
                f"{url}: {1 + options.ahead} shards of split {self.split!r} take {needed:,} bytes, "
                f"and {self._cache_folder} may hold {options.limit_bytes:,}; raise "
                f"{options.limit_name}"
            )
        self._cache  # noqa: B018 -- a folder that cannot be made is refused here

    def prepare(self, shards: Iterable[int], then: Iterable[int] = ()) -> None:
        """Fetch shards in the background, and release all others.

        Released shards may be removed from this machine. A local dataset does nothing.

        Args:
            shards: indices of the shards that are read from now on.
            then: indices of the shards that are read after them.
        """
        if not self.remote:
            return
        now = dict.fromkeys(shards)
        self._prepared = frozenset(now)
        self._tars.keep(now)
        self._cache.prepare([self._shards[number] for number in (*now, *then)])

    def room(self, shards: int) -> int:
        """Return the most bytes that ``shards`` shards of this split take on the local disk."""
        return sum(sorted(self.staged_sizes, reverse=True)[:shards])

    @property
    def staged_sizes(self) -> list[int]:
        """Bytes of each shard that is copied to this machine: none of a local dataset's."""
        return [size for _, size in self._content.files()] if self.remote else []

    @property
    def staged(self) -> Counts:
        """Counts of this process's copies, by `vse_scale.data.staged.NAMES`; empty if local."""
        return self._cache.counts() if self.remote else {}

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._first[-1])

    def holds(self, kind: Kind) -> bool:
        """Return whether every sample has an image, or region features.

        Of more shards than are opened at once the first is looked at, unless they are in columns; a
        sample of another that lacks it is an error when it is read.
        """
        if isinstance(self._content, ColumnSplit):
            return self._content.holding(_EXTENSIONS[kind]) == len(self)
        shards = range(len(self._shards) if self._few else 1)
        return all(bool(self._index(shard).has(_EXTENSIONS[kind]).all()) for shard in shards)

    def check_holds(self, kind: Kind, remedy: str | None = None) -> None:
        """Raise DatasetError unless every sample has an image, or region features.

        Args:
            kind: the one that is required.
            remedy: alternative to another build of the dataset, for the message.
        """
        if self.holds(kind):
            return
        wanted = {"images": "an image", "regions": "region features"}[kind]
        alternative = f", or {remedy}" if remedy else ""
        raise DatasetError(
            f"{self.folder}: not every sample of split {self.split!r} has {wanted}; build it with "
            f"them{alternative}"
        )

    def image_bytes(self, image: int) -> npt.NDArray[np.uint8]:
        """Return the encoded image, a read-only view of the mapped file."""
        return self._view(image, "jpg")

    def regions(self, image: int) -> npt.NDArray[np.floating[Any]]:
        """Return the features (regions, channels) of an image's regions."""
        return load_regions(self._view(image, "npy").tobytes())

    def most_regions(self) -> int:
        """Return the largest number of regions that an image has, by the sizes of their files."""
        first = self.regions(0)
        header = self._index(0).place(0, "npy")[1] - first.nbytes
        row = first.itemsize * first.shape[1]
        if isinstance(self._content, ColumnSplit):
            most = self._content.largest_npy()
        else:
            most = max(int(self._index(n).size("npy").max()) for n in range(len(self._shards)))
        return int((most - header) // row)

    def record(self, image: int) -> ImageRecord:
        """Return the image's id, captions and size.

        Raises:
            DatasetError: they are not what a build writes.
        """
        try:
            raw = parse_description(self._view(image, "json").tobytes())
        except ValueError as error:
            raise DatasetError(
                f"{self.name(image)}: its description cannot be read: {error}; build the dataset "
                "again"
            ) from None
        return ImageRecord(
            image_id=raw["image_id"],
            captions=[Caption(caption["id"], caption["text"]) for caption in raw["captions"]],
            width=raw["width"] or 0,
            height=raw["height"] or 0,
        )

    def name(self, image: int) -> str:
        """Return folder, shard and member of an image, for messages."""
        shard, row = self._find(image)
        index = self._index(shard)
        places = [index.place(row, extension) for extension in ("jpg", "npy", "json")]
        start = next(offset for offset, _ in places if offset >= 0) - _TAR_HEADER
        member = self._tar(shard)[start : start + _TAR_NAME].tobytes().rstrip(b"\0")
        # A damaged tar is what most messages are about.
        return f"{self.folder}: {self._shards[shard].name}: {member.decode(errors='replace')}"

    def source_order(self) -> npt.NDArray[np.int64]:
        """Return the image indices (I,) in the order of their source, which a build shuffles.

        COCO's five folds of 1,000 images are consecutive in that order.

        Raises:
            DatasetError: the manifest lacks the number of rows of the source.
        """
        keys = [key for n in range(len(self._shards)) for key in self._index(n).keys]
        positions = source_positions(self._manifest, self.split, keys)
        return np.argsort(positions, kind="stable")

    def _find(self, image: int) -> tuple[int, int]:
        """Return the shard of an image, and its row there."""
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of a split of {len(self)}")
        shard = int(np.searchsorted(self._first, image, side="right")) - 1
        return shard, image - int(self._first[shard])

    def _view(self, image: int, extension: str) -> npt.NDArray[np.uint8]:
        shard, row = self._find(image)
        offset, size = self._index(shard).place(row, extension)
        if offset < 0:
            raise DatasetError(
                f"{self.name(image)}: its sample has no .{extension}; build the dataset again"
            )
        view = self._tar(shard)[offset : offset + size]
        if (len(self._prepared) if self.remote else len(self._shards)) <= _map_share():
            return view
        # Views would keep more files open than may be: each holds the map that it is of.
        copy = view.copy()
        copy.setflags(write=False)
        return copy

    def _tar(self, number: int) -> npt.NDArray[np.uint8]:
        tar = self._tars.get(number)
        if tar is not None:
            return tar
        if isinstance(self.folder, Path):
            path = self.folder / self._shards[number].name
        else:
            if number not in self._prepared:
                following = range(
                    number + 1, min(number + 1 + self._options.ahead, len(self._shards))
                )
                self.prepare([number], following)
            path = self._cache.fetch(self._shards[number])
        self._tars.make_room()
        tar = map_file(path)
        self._tars.put(number, tar)
        return tar

    def _index(self, number: int) -> Index:
        index = self._indices.get(number)
        if index is None:
            shard = self._shards[number]
            if not isinstance(self.folder, Path):
                index = self._remote_index(shard)
            elif isinstance(shard, TabledRecord):
                index = checked_table(self.folder, shard, again=number in self._compared)
                self._compared.add(number)
            else:
                index = checked_index(self.folder, shard)
            in_columns = self._manifest.in_columns
            self._indices.put(number, index, shard.samples if in_columns else 1)
        return index

    def _read_indices(self) -> None:
        numbers = range(len(self._shards))
        if not self.remote:
            for number in numbers:
                self._index(number)
            return
        with (
            heartbeat(f"reading the indices of {len(self._shards)} shards from {self.folder}"),
            ThreadPoolExecutor(_INDEX_THREADS) as pool,
        ):
            for _ in pool.map(self._index, numbers):
                pass

    def _remote_index(self, shard: ShardRecord) -> Index:
        path = f"{self.folder}/{shard.index_name}"
        if isinstance(shard, TabledRecord):
            place, cache = f"{self.folder}/{shard.table_name}", self._cache
            return shard_table(
                cache.table(shard), shard, place,
                keys=lambda: shard_index(cache.index(shard), shard, path).keys,
            )  # fmt: skip
        return shard_index(self._cache.index(shard), shard, path)


def _staged_column(dataset: weakref.ref[ShardDataset], column: ColumnFile) -> npt.NDArray[Any]:
    """Open a column of a remote dataset, which a folder of this machine keeps."""
    opened = dataset()
    assert opened is not None
    return open_column(opened._cache.column(column), column)


def _map_share() -> int:
    """Return how many files each of the open datasets may map."""
    return max(1, most_maps() // max(1, len(_OPEN)))
