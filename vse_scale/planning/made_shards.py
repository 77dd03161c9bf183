"""The shards of a split: those of a dataset's manifest, or made ones of equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vse_scale.config import DataConfig
from vse_shards.manifest import Manifest
from vse_shards.storage import is_url


@dataclass(frozen=True)
class ShardList:
    """Counts and sizes on which the order and the staging of a split depend.

    Attributes:
        folder: name of the dataset, for messages.
        captions_per_sample: (I,) integers.
        shard_sizes: images of each shard.
        shard_bytes: bytes of each shard.
        dataset_sizes: images of each dataset, in order.
        remote: whether nodes stage its shards.
    """

    folder: str
    captions_per_sample: npt.NDArray[np.integer]
    shard_sizes: Sequence[int]
    shard_bytes: Sequence[int]
    dataset_sizes: Sequence[int]
    remote: bool

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.captions_per_sample)

    @classmethod
    def of(cls, data: DataConfig) -> ShardList:
        """Read the manifests of ``data.path``.

        Raises:
            DatasetError: one is not there, or has no such split.
        """
        splits = [Manifest.load(folder).split(data.split, folder) for folder in data.folders]
        sizes = [split.samples().tolist() for split in splits]
        return cls(
            folder=data.folders[0],
            captions_per_sample=np.concatenate([one.captions_per_sample() for one in splits]),
            shard_sizes=[size for some in sizes for size in some],
            shard_bytes=[size for split in splits for _, size in split.files()],
            dataset_sizes=[sum(some) for some in sizes],
            remote=any(map(is_url, data.folders)),
        )

    @classmethod
    def made(cls, shards: int, images: int, captions: int, size: int) -> ShardList:
        """Return ``shards`` shards of ``size`` bytes, of as many images and captions each."""
        total = shards * images
        kind = np.min_scalar_type(captions)
        return cls(
            folder=f"{shards} made shards",
            captions_per_sample=np.broadcast_to(np.array(captions, kind), (total,)),
            shard_sizes=np.full(shards, images).tolist(),
            shard_bytes=np.full(shards, size).tolist(),
            dataset_sizes=[total],
            remote=True,
        )
