"""The global shuffle of a build, and how to undo it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from vse_shards.errors import DatasetError
from vse_shards.manifest import Manifest


def shuffle(count: int, seed: int, split: str) -> NDArray[np.int64]:
    """Give, for every place in a split, the number of the source's row that stands there.

    Built on raw Philox words, which no version of NumPy changes, so that a dataset shuffled today
    is shuffled alike in ten years.

    Args:
        count: rows of the split.
        seed: of the build.
        split: its name, so that splits differ.

    Returns:
        A permutation, (count,) int64.
    """
    stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "big")
    words = Philox(key=[seed, stream]).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def source_positions(manifest: Manifest, split: str, keys: Sequence[str]) -> NDArray[np.int64]:
    """Give where samples stood in their source, for whom its order matters.

    COCO's five folds of 1,000 images are consecutive in the source.

    Args:
        manifest: of the dataset.
        split: name of the split.
        keys: of samples of this split, as their shards' indices give them.

    Returns:
        Row of each sample among the split's rows in the source, (len(keys),) int64.

    Raises:
        DatasetError: the manifest does not say, or the keys are none of this split.
    """
    count = manifest.source.get("rows", {}).get(split)
    if count is None:
        raise DatasetError(f"the manifest does not say how many rows split {split!r} came from")
    places = np.array([int(key) for key in keys], np.int64)
    if len(places) and not 0 <= places.min() <= places.max() < count:
        raise DatasetError(f"keys up to {places.max()} are none of the {count} rows of {split!r}")
    return shuffle(count, int(manifest.build["seed"]), split)[places]
