"""A split of a dataset folder, opened for reading: images and captions by number, from mmap."""

from __future__ import annotations

import errno
import json
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vse_scale.console import heartbeat
from vse_scale.data.staging import StagingCache, StagingOptions, default_folder
from vse_scale.errors import DatasetError
from vse_shards.index import Index, parse_index, read_index
from vse_shards.manifest import Manifest, ShardRecord
from vse_shards.shard import load_regions
from vse_shards.shuffle import source_positions
from vse_shards.storage import is_url

Kind = Literal["images", "regions"]

_TAR_HEADER = 512
_TAR_NAME = 100
_INDEX_THREADS = 16  # small files: what counts is the way to them


@dataclass(frozen=True)
class Caption:
    """One caption of an image."""

    id: int | str
    text: str


@dataclass(frozen=True)
class ImageRecord:
    """What is known of an image beside its pixels; width and height in pixels, 0 without it."""

    image_id: int | str
    captions: list[Caption]
    width: int
    height: int


class ShardDataset:
    """The images of one split, numbered in the order of its shards.

    The shards of a remote dataset are copied to this machine as they are read. Reading them in
    order fetches a few ahead; whoever reads in another order says so by `prepare`.

    Attributes:
        folder: of the dataset, or its URL.
        split: that was opened.
        splits: all that the folder has.
        remote: whether it is a URL.
        captions_per_sample: (I,) int64, read from the manifest alone.
        pairs: number of captions in the split.
        shard_sizes: images of each shard.
        fingerprint: of the whole dataset folder.
    """

    def __init__(
        self, folder: str | Path, split: str, staging: StagingOptions | None = None
    ) -> None:
        """Check the folder against its manifest and map the split's shards.

        Args:
            folder: of the dataset, or its URL.
            split: to open.
            staging: of a remote dataset; None: the defaults.

        Raises:
            DatasetError: there is no such split, or a file disagrees with the manifest; the
                message names the file and both values.
        """
        self.remote = is_url(str(folder))
        self.folder = str(folder).rstrip("/") if self.remote else Path(folder)
        manifest = Manifest.load(self.folder)
        self._shards = manifest.split(split, self.folder).shards
        if not self._shards:
            raise DatasetError(f"{folder}: split {split!r} has no images; build it from more rows")
        self._manifest = manifest
        self.split = split
        self.splits = tuple(manifest.splits)
        self.fingerprint = manifest.fingerprint
        self.shard_sizes = [shard.samples for shard in self._shards]
        self.captions_per_sample = np.concatenate(
            [shard.captions_per_sample() for shard in self._shards]
        )
        self.pairs = int(self.captions_per_sample.sum())
        self._first = np.concatenate([[0], np.cumsum(self.shard_sizes)]).astype(np.int64)
        self._tars: dict[int, npt.NDArray[np.uint8]] = {}
        self._prepared: frozenset[int] = frozenset()
        if isinstance(self.folder, Path):
            manifest.check(self.folder)
            self._tars = {n: _map(self.folder / s.name) for n, s in enumerate(self._shards)}
        else:
            self._open_cache(self.folder, staging or StagingOptions())
        indices = self._indices()
        # Offset and size in its tar of every image's members, (I, 2), -1 where it has none.
        self._images, self._regions, self._records = (
            np.concatenate([index.places(extension) for index in indices])
            for extension in ("jpg", "npy", "json")
        )

    def _open_cache(self, url: str, options: StagingOptions) -> None:
        self._ahead = options.ahead
        folder = Path(options.folder) if options.folder else default_folder()
        needed = self.room(1 + options.ahead)
        if options.limit_bytes < needed:
            raise DatasetError(
                f"{url}: {1 + options.ahead} shards of split {self.split!r} take {needed:,} bytes, "
                f"and {folder} may hold {options.limit_bytes:,}; raise data.cache_gb"
            )
        self._cache = StagingCache(url, folder, options.limit_bytes)
        weakref.finalize(self, self._cache.close)

    def prepare(self, shards: Iterable[int], then: Iterable[int] = ()) -> None:
        """Say which shards are read from now on, and which after them.

        Both are fetched in the background; others may be removed from this machine. A local
        dataset has them all at hand.
        """
        if not self.remote:
            return
        now = dict.fromkeys(shards)
        self._prepared = frozenset(now)
        self._tars = {number: tar for number, tar in self._tars.items() if number in now}
        self._cache.prepare([self._shards[number] for number in (*now, *then)])

    def room(self, shards: int) -> int:
        """Return the bytes that so many shards of this split can take on this machine's disk."""
        if not self.remote:
            return 0
        return sum(sorted((shard.bytes for shard in self._shards), reverse=True)[:shards])

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._first[-1])

    def holds(self, kind: Kind) -> bool:
        """Return whether every sample has an image, or region features."""
        spans = self._images if kind == "images" else self._regions
        return bool((spans[:, 0] >= 0).all())

    def check_holds(self, kind: Kind) -> None:
        """Raise DatasetError unless every sample has an image, or region features."""
        if self.holds(kind):
            return
        wanted, remedy = {
            "images": ("an image", "set model.image.backbone=regions"),
            "regions": ("region features", "choose a model.image.backbone that takes pixels"),
        }[kind]
        raise DatasetError(
            f"{self.folder}: not every sample of split {self.split!r} has {wanted}; build it with "
            f"them, or {remedy}"
        )

    def image_bytes(self, image: int) -> npt.NDArray[np.uint8]:
        """Return the encoded image, a read-only view of the mapped file."""
        return self._view(image, self._images)

    def regions(self, image: int) -> npt.NDArray[np.floating[Any]]:
        """Return the features (regions, channels) of an image's regions."""
        return load_regions(self._view(image, self._regions).tobytes())

    def most_regions(self) -> int:
        """Return the largest number of regions of an image, by the sizes of their files."""
        first = self.regions(0)
        header = int(self._regions[0, 1]) - first.nbytes
        row = first.itemsize * first.shape[1]
        return int((self._regions[:, 1].max() - header) // row)

    def record(self, image: int) -> ImageRecord:
        """Return the image's id, captions and size."""
        raw = json.loads(self._view(image, self._records).tobytes())
        return ImageRecord(
            image_id=raw["image_id"],
            captions=[Caption(caption["id"], caption["text"]) for caption in raw["captions"]],
            width=raw["width"] or 0,
            height=raw["height"] or 0,
        )

    def name(self, image: int) -> str:
        """Return folder, shard and member of an image, for messages."""
        shard = self._shard(image)
        spans = self._images if self._images[image, 0] >= 0 else self._regions
        start = int(spans[image, 0]) - _TAR_HEADER
        member = self._tar(shard)[start : start + _TAR_NAME].tobytes().rstrip(b"\0").decode()
        return f"{self.folder}: {self._shards[shard].name}: {member}"

    def source_order(self) -> npt.NDArray[np.int64]:
        """Return the images (I,) in the order of their source, which a build shuffles.

        COCO's five folds of 1,000 images are consecutive there.

        Raises:
            DatasetError: the manifest does not say how many rows the source had.
        """
        keys = [key for index in self._indices() for key in index.keys]
        positions = source_positions(self._manifest, self.split, keys)
        return np.argsort(positions, kind="stable")

    def _shard(self, image: int) -> int:
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of a split of {len(self)}")
        return int(np.searchsorted(self._first, image, side="right")) - 1

    def _view(self, image: int, spans: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        tar = self._tar(self._shard(image))
        offset, size = spans[image]
        return tar[offset : offset + size]

    def _tar(self, number: int) -> npt.NDArray[np.uint8]:
        tar = self._tars.get(number)
        if tar is None:
            if number not in self._prepared:
                following = range(number + 1, min(number + 1 + self._ahead, len(self._shards)))
                self.prepare([number], following)
            tar = self._tars[number] = _map(self._cache.fetch(self._shards[number]))
        return tar

    def _indices(self) -> list[Index]:
        if isinstance(self.folder, Path):
            return [read_index(self.folder / shard.index_name) for shard in self._shards]
        with (
            heartbeat(f"reading the indices of {len(self._shards)} shards from {self.folder}"),
            ThreadPoolExecutor(_INDEX_THREADS) as pool,
        ):
            return list(pool.map(self._remote_index, self._shards))

    def _remote_index(self, shard: ShardRecord) -> Index:
        path = f"{self.folder}/{shard.index_name}"
        index = parse_index(self._cache.index(shard), path)
        if len(index) != shard.samples:
            raise DatasetError(
                f"{path}: has {len(index)} samples, the manifest says {shard.samples}; build the "
                "dataset again"
            )
        return index


def _map(path: Path) -> npt.NDArray[np.uint8]:
    try:
        # As a plain array, whose slices cost a tenth of memmap's.
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        remedy = "raise `ulimit -n`" if error.errno == errno.EMFILE else "check the file"
        raise DatasetError(f"{path}: cannot be mapped ({error.strerror}); {remedy}") from error
