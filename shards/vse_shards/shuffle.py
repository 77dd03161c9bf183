"""Global shuffle of a build, and its inverse."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from vse_shards.errors import DatasetError
from vse_shards.manifest import Manifest


def shuffle(count: int, seed: int, split: str) -> NDArray[np.int64]:
    """Return the source row at each position of a split.

    The order comes from raw Philox words, which NumPy keeps the same in all versions, unlike the
    results of ``Generator.permutation``: a rebuild years later must give the same bytes.

    Args:
        count: number of rows of the split.
        seed: seed of the build.
        split: name of the split, so that splits differ.

    Returns:
        A permutation, (count,) int64.
    """
    stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "big")
    words = Philox(key=[seed, stream]).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def source_positions(manifest: Manifest, split: str, keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the positions of samples in their source.

    Some protocols need them: COCO's five folds of 1,000 images are consecutive in the source.

    Args:
        manifest: manifest of the dataset.
        split: name of the split.
        keys: keys of samples of this split, from the indices of its shards.

    Returns:
        Row of each sample among the split's rows in the source, (len(keys),) int64.

    Raises:
        DatasetError: the manifest lacks the split, or the keys belong to another.
    """
    parts = [manifest.source, *manifest.source.get("appended", [])]
    counts = [part.get("rows", {}).get(split, 0) for part in parts]
    if not sum(counts):
        raise DatasetError(f"the manifest has no number of source rows for split {split!r}")
    offsets = np.array([int(key) for key in keys], np.int64)
    if len(offsets) and not 0 <= offsets.min() <= offsets.max() < sum(counts):
        raise DatasetError(f"key {offsets.max()} is beyond the {sum(counts)} rows of {split!r}")
    # Rows that were appended come after all others, in a shuffle of their own.
    seed = int(manifest.build["seed"])
    starts = np.cumsum([0, *counts])
    orders = [
        start + shuffle(count, seed, split) for start, count in zip(starts, counts, strict=False)
    ]
    return np.concatenate(orders)[offsets]
