"""Features of a frozen image tower: stored once for each shard, then read in place of pixels."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vse_scale.console import log
from vse_scale.data.recent import Recent, most_maps
from vse_scale.errors import DatasetError
from vse_scale.files import whole_file
from vse_shards.npy import open_npy

_KIND, _POOLED = np.float16, np.float32
MOST_POOLED_BYTES = 256 << 20  # of the vectors that a rank keeps of a split

Pool = Callable[[npt.NDArray[np.float16]], npt.NDArray[np.float32]]
"""Makes one vector (C,) of an image's features (K, C)."""


class StoredFeatures:
    """The features of all images of a split, a file ``{sha256 of the shard}.npy`` for each shard.

    A file holds (n, K, C) float16: K cells of C channels for each of the n images. Its name changes
    with the shard, so a dataset that grew keeps the files of its former shards. Whatever else
    decides the values, such as the weights, has to be in the name of the folder.

    Args:
        folder: of the files, this machine's or one that all machines see.
        digests: of the split's shards, in order.
        sizes: images of each shard.
        shape: (K, C).
    """

    def __init__(
        self, folder: Path, digests: Sequence[str], sizes: Sequence[int], shape: tuple[int, int]
    ) -> None:
        self.folder = folder
        self._paths = [folder / f"{digest}.npy" for digest in digests]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._shape = shape
        self._maps: Recent[npt.NDArray[np.float16]] = Recent(most_maps)
        self._pool: Pool | None = None

    def pool_by(self, pool: Pool) -> None:
        """Give one vector (C,) in place of an image's features.

        It is made at an image's first use and kept, where all of a split take at most
        `MOST_POOLED_BYTES`; else at every use, so that memory does not grow with the split.
        """
        images, channels = int(self._first[-1]), self._shape[1]
        kept = images if images * channels * _POOLED().itemsize <= MOST_POOLED_BYTES else 0
        # Pages of memory come with their first use.
        self._pooled = np.empty((kept, channels), _POOLED)
        self._is_pooled = np.zeros(kept, bool)
        self._pool = pool

    def rows(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the indices of a shard's images."""
        return np.arange(self._first[shard], self._first[shard + 1])

    def bytes(self, shard: int) -> int:
        """Return the size of a shard's features."""
        return len(self.rows(shard)) * self._shape[0] * self._shape[1] * _KIND().itemsize

    def missing(self) -> list[int]:
        """Return the shards whose file is not there, or not whole."""
        return [shard for shard in range(len(self._paths)) if not self._is_whole(shard)]

    def room_for(self, shard: int) -> npt.NDArray[np.float16]:
        """Return an array for the features (n, K, C) of a shard, whose values are undefined."""
        return np.empty((len(self.rows(shard)), *self._shape), _KIND)

    def rounded(
        self, shard: int, features: npt.NDArray[np.floating[Any]]
    ) -> npt.NDArray[np.float16]:
        """Return features of a shard as they are stored.

        Raises:
            DatasetError: a value is NaN or infinite, or beyond float16.
        """
        with np.errstate(over="ignore"):
            found = features.astype(_KIND)
        if not np.isfinite(features).all():
            raise DatasetError(
                f"{self._paths[shard].name}: a feature is NaN or infinite; look at the weights of "
                "the image tower"
            )
        if not np.isfinite(found).all():
            raise DatasetError(
                f"{self._paths[shard].name}: a feature is beyond what float16 holds (the largest "
                f"is {np.abs(features).max():.3g}, the limit 65,504); set data.feature_cache=null"
            )
        return found

    def write(self, shard: int, features: npt.NDArray[np.float16]) -> None:
        """Store the features (n, K, C) of a shard, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self._paths[shard], shared=True) as partial, partial.open("wb") as file:
            np.save(file, features)

    def regions(self, image: int) -> npt.NDArray[np.floating[Any]]:
        """Return the features (K, C) of an image, as `ShardDataset.regions` returns a detector's.

        Float16; or what `pool_by` had made of them, (C,) float32.

        Raises:
            DatasetError: their file is gone, or another.
        """
        if self._pool is None:
            return self._cells(image)
        if not len(self._pooled):
            return self._pool(self._cells(image))
        if not self._is_pooled[image]:
            self._pooled[image] = self._pool(self._cells(image))
            self._is_pooled[image] = True
        vector: npt.NDArray[np.float32] = self._pooled[image]
        return vector

    def _cells(self, image: int) -> npt.NDArray[np.float16]:
        shard = int(np.searchsorted(self._first, image, side="right")) - 1
        found = self._maps.get(shard)
        if found is None:
            self._maps.make_room()
            try:
                found = self._opened(shard)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno == errno.EMFILE:
                    raise DatasetError(
                        f"{self._paths[shard]}: too many files are open; raise `ulimit -n`"
                    ) from error
                raise DatasetError(
                    f"{self._paths[shard]}: cannot be read ({error}); the same command computes "
                    "it again"
                ) from error
            self._maps.put(shard, found)
        features: npt.NDArray[np.float16] = found[image - int(self._first[shard])]
        return features

    def _is_whole(self, shard: int) -> bool:
        path = self._paths[shard]
        if not path.exists():
            return False
        try:
            self._opened(shard)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            log.warning("%s: is no whole file of features (%s); computed again", path, reason)
            return False
        return True

    def _opened(self, shard: int) -> npt.NDArray[np.float16]:
        held = open_npy(self._paths[shard])
        if held.shape != (len(self.rows(shard)), *self._shape) or held.dtype != _KIND:
            raise ValueError(f"holds {held.dtype} {held.shape}")
        return held
