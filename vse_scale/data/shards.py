"""Read images and captions of one split by index, from memory-mapped shards."""

from __future__ import annotations

import errno
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
from vse_shards.json_text import parse_json
from vse_shards.manifest import Manifest, ShardRecord
from vse_shards.regions import load_regions
from vse_shards.shuffle import source_positions
from vse_shards.sources import Caption
from vse_shards.storage import is_url

__all__ = ["Caption", "ImageRecord", "Kind", "ShardDataset"]

Kind = Literal["images", "regions"]

_TAR_HEADER = 512
_TAR_NAME = 100
_INDEX_THREADS = 16  # indices are small, so latency dominates


@dataclass(frozen=True)
class ImageRecord:
    """Metadata of an image; width and height in pixels, 0 for region features alone."""

    image_id: int | str
    captions: list[Caption[int | str]]
    width: int
    height: int


class ShardDataset:
    """The images of one split, indexed in the order of its shards.

    The shards of a remote dataset are copied to this machine as they are read. Reading in order
    fetches a few shards ahead; a reader in another order announces its shards by `prepare`.

    Attributes:
        folder: folder of the dataset, or its URL.
        split: name of the open split.
        splits: names of all splits of the folder.
        remote: whether the folder is a URL.
        captions_per_sample: (I,) int64, read from the manifest alone.
        pairs: number of captions in the split.
        shard_sizes: images of each shard.
        fingerprint: digest of the whole dataset folder.
    """

    def __init__(
        self, folder: str | Path, split: str, staging: StagingOptions | None = None
    ) -> None:
        """Check the folder against its manifest and map the split's shards.

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
        # Spans (I, 2): offset and size of every image's members in its tar, -1 without a member.
        self._image_spans, self._region_spans, self._record_spans = (
            np.concatenate([index.places(extension) for index in indices])
            for extension in ("jpg", "npy", "json")
        )

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

    def _open_cache(self, url: str, options: StagingOptions) -> None:
        self._ahead = options.ahead
        folder = Path(options.folder) if options.folder else default_folder()
        needed = self.room(1 + options.ahead)
        if options.limit_bytes < needed:
            raise DatasetError(
                f"{url}: {1 + options.ahead} shards of split {self.split!r} take {needed:,} bytes, "
                f"and {folder} may hold {options.limit_bytes:,}; raise {options.limit_name}"
            )
        self._cache = StagingCache(
            url,
            folder,
            options.limit_bytes,
            folder_name=options.folder_name,
            limit_name=options.limit_name,
        )
        weakref.finalize(self, self._cache.close)

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
        self._tars = {number: tar for number, tar in self._tars.items() if number in now}
        self._cache.prepare([self._shards[number] for number in (*now, *then)])

    def room(self, shards: int) -> int:
        """Return the most bytes that ``shards`` shards of this split take on the local disk."""
        if not self.remote:
            return 0
        return sum(sorted((shard.bytes for shard in self._shards), reverse=True)[:shards])

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._first[-1])

    def holds(self, kind: Kind) -> bool:
        """Return whether every sample has an image, or region features."""
        spans = self._image_spans if kind == "images" else self._region_spans
        return bool((spans[:, 0] >= 0).all())

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
        return self._view(image, self._image_spans)

    def regions(self, image: int) -> npt.NDArray[np.floating[Any]]:
        """Return the features (regions, channels) of an image's regions."""
        return load_regions(self._view(image, self._region_spans).tobytes())

    def most_regions(self) -> int:
        """Return the largest number of regions that an image has, by the sizes of their files."""
        first = self.regions(0)
        header = int(self._region_spans[0, 1]) - first.nbytes
        row = first.itemsize * first.shape[1]
        return int((self._region_spans[:, 1].max() - header) // row)

    def record(self, image: int) -> ImageRecord:
        """Return the image's id, captions and size."""
        raw = parse_json(self._view(image, self._record_spans).tobytes())
        return ImageRecord(
            image_id=raw["image_id"],
            captions=[Caption(caption["id"], caption["text"]) for caption in raw["captions"]],
            width=raw["width"] or 0,
            height=raw["height"] or 0,
        )

    def name(self, image: int) -> str:
        """Return folder, shard and member of an image, for messages."""
        shard = self._shard(image)
        spans = self._image_spans if self._image_spans[image, 0] >= 0 else self._region_spans
        start = int(spans[image, 0]) - _TAR_HEADER
        member = self._tar(shard)[start : start + _TAR_NAME].tobytes().rstrip(b"\0").decode()
        return f"{self.folder}: {self._shards[shard].name}: {member}"

    def source_order(self) -> npt.NDArray[np.int64]:
        """Return the image indices (I,) in the order of their source, which a build shuffles.

        COCO's five folds of 1,000 images are consecutive in that order.

        Raises:
            DatasetError: the manifest lacks the number of rows of the source.
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
        # A plain array over the same memory, because its slices cost a tenth of a memmap's.
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        remedy = "raise `ulimit -n`" if error.errno == errno.EMFILE else "check the file"
        raise DatasetError(f"{path}: cannot be mapped ({error.strerror}); {remedy}") from error
