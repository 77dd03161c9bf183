"""Several datasets as one; image indices run through one dataset after the other."""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vse_scale.data.features import StoredFeatures
from vse_scale.data.shards import ImageRecord, Kind, ShardDataset
from vse_scale.data.staged import Counts, total
from vse_scale.data.staging import StagingOptions
from vse_shards.manifest import Manifest

_MOST_MIXTURES = 1 << 20  # former ones that are looked through

__all__ = ["Dataset", "MixedDataset", "caption_texts", "folder_with", "open_datasets"]


class MixedDataset:
    """The same split of several dataset folders, with the interface of one.

    An image index is unique among all of them, and with it everything that depends on the index:
    the captions that are never its negatives, and its random numbers. The same photo in two
    datasets counts as two images.

    Attributes:
        parts: the datasets, in order.
        folder: folder of the first dataset.
        split: name of the open split.
        remote: whether a dataset is a URL.
        captions_per_sample: (I,) integers, over all datasets.
        pairs: number of captions.
        shard_sizes: images of each shard.
        shard_digests: sha256 of each shard.
        features: of a frozen image tower, over all datasets, as in `ShardDataset`.
        fingerprint: digest of all datasets in this order.
    """

    def __init__(self, parts: Sequence[ShardDataset]) -> None:
        self.parts = tuple(parts)
        self.folder, self.split = parts[0].folder, parts[0].split
        self.remote = any(part.remote for part in parts)
        self.captions_per_sample = np.concatenate([part.captions_per_sample for part in parts])
        self.pairs = sum(part.pairs for part in parts)
        self.shard_sizes = [size for part in parts for size in part.shard_sizes]
        self.shard_digests = [digest for part in parts for digest in part.shard_digests]
        self.features: StoredFeatures | None = None
        self.fingerprint = _joined([part.fingerprint for part in parts])
        self._first = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        counts = [len(part.shard_sizes) for part in parts]
        self._first_shard = list(itertools.accumulate(counts, initial=0))

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._first[-1])

    @property
    def dataset_sizes(self) -> Sequence[int]:
        """Images of each dataset, in order."""
        return [len(part) for part in self.parts]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Digest of each dataset folder, in order."""
        return tuple(part.fingerprint for part in self.parts)

    def grew_from(self, fingerprint: str, parts: Sequence[str] = ()) -> bool:
        """Return whether this mixture is a former one with rows appended to its datasets.

        Args:
            fingerprint: of the former mixture.
            parts: fingerprints of its datasets; none where nobody knows them.
        """
        choices = [(part.fingerprint, *reversed(part.former)) for part in self.parts]
        if parts:
            return len(parts) == len(choices) and all(map(operator.contains, choices, parts))
        # The newest first, and no more than take seconds: n appends to each of d are (n + 1)^d.
        tried = itertools.islice(itertools.product(*choices), 1, _MOST_MIXTURES)
        return any(_joined(chosen) == fingerprint for chosen in tried)

    def check_holds(self, kind: Kind, remedy: str | None = None) -> None:
        """Raise DatasetError unless every sample has an image, or region features.

        Args:
            kind: the one that is required.
            remedy: alternative to another build of the dataset, for the message.
        """
        for part in self.parts:
            part.check_holds(kind, remedy)

    def prepare(self, shards: Iterable[int], then: Iterable[int] = ()) -> None:
        """Fetch shards in the background, and release all others.

        Args:
            shards: shards that are read from now on, counted over all datasets.
            then: shards that are read after them.
        """
        now, following = list(shards), list(then)
        for part, first, end in zip(
            self.parts, self._first_shard[:-1], self._first_shard[1:], strict=True
        ):
            part.prepare(*([n - first for n in ns if first <= n < end] for ns in (now, following)))

    def room(self, shards: int) -> int:
        """Return the most bytes that ``shards`` shards take on the local disk."""
        sizes = [size for part in self.parts for size in part.staged_sizes]
        return sum(sorted(sizes, reverse=True)[:shards])

    @property
    def staged(self) -> Counts:
        """Counts of this process's copies, of all datasets together."""
        return total([part.staged for part in self.parts])

    def image_bytes(self, image: int) -> npt.NDArray[np.uint8]:
        """Return the encoded image, a read-only view of the mapped file."""
        part, row = self._find(image)
        return part.image_bytes(row)

    def regions(self, image: int) -> npt.NDArray[np.floating[Any]]:
        """Return the features (regions, channels) of an image's regions."""
        part, row = self._find(image)
        return part.regions(row)

    def most_regions(self) -> int:
        """Return the largest number of regions that an image has."""
        return max(part.most_regions() for part in self.parts)

    def record(self, image: int) -> ImageRecord:
        """Return the image's id, captions and size."""
        part, row = self._find(image)
        return part.record(row)

    def name(self, image: int) -> str:
        """Return folder, shard and member of an image, for messages."""
        part, row = self._find(image)
        return part.name(row)

    def _find(self, image: int) -> tuple[ShardDataset, int]:
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        number = int(np.searchsorted(self._first, image, side="right")) - 1
        return self.parts[number], image - int(self._first[number])


def _joined(fingerprints: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()


Dataset = ShardDataset | MixedDataset


def open_datasets(
    folders: Sequence[str | Path],
    split: str,
    staging: StagingOptions | None = None,
) -> Dataset:
    """Open ``split`` of one folder, or of several as one.

    Args:
        folders: one or more dataset folders, or their URLs.
        split: name of the split.
        staging: local copies of remote shards; None: the defaults.

    Raises:
        DatasetError: a folder has no such split, or a file disagrees with its manifest.
    """
    parts = [ShardDataset(folder, split, staging) for folder in folders]
    return parts[0] if len(parts) == 1 else MixedDataset(parts)


def caption_texts(dataset: Dataset, shards: int | None = None) -> Iterator[str]:
    """Yield the texts of captions, image by image.

    Args:
        dataset: whose captions they are.
        shards: of how many shards, evenly spread; None: of all.
    """
    count = len(dataset.shard_sizes)
    if shards is None or shards >= count:
        images: Iterable[int] = range(len(dataset))
    else:
        images = _images_of(dataset, np.linspace(0, count - 1, shards).round().astype(int).tolist())
    for image in images:
        yield from (caption.text for caption in dataset.record(image).captions)


def _images_of(dataset: Dataset, shards: Sequence[int]) -> Iterator[int]:
    """Yield the images of some shards, and announce the next of these while one is read."""
    bounds = np.concatenate([[0], np.cumsum(dataset.shard_sizes)]).tolist()
    for place, shard in enumerate(shards):
        dataset.prepare([shard], shards[place + 1 : place + 2])
        yield from range(bounds[shard], bounds[shard + 1])


def folder_with(split: str, folders: Sequence[str | Path]) -> str | Path | None:
    """Return the first of ``folders`` that has ``split``."""
    return next((f for f in folders if split in Manifest.load(f).splits), None)
