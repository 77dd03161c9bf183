"""Saved similarity matrices, of one model or an ensemble of several."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_scale.errors import DatasetError, ModelError
from vse_scale.retrieval.metrics import DirectionRecalls, Recalls
from vse_shards.npy import open_npy

_TILE_ELEMENTS = 1 << 24  # of the matrix at once: 128 MB in float64


@dataclass(frozen=True)
class Similarities:
    """A weighted sum of matrices images x captions, mapped and never whole in memory.

    Attributes:
        matrices: (I, C) floating each.
        weights: one per matrix.
        caption_to_image: (C,) int64, each caption's image.
        image_ids: I ids.
        caption_ids: C ids.
    """

    matrices: tuple[NDArray[np.floating], ...]
    weights: tuple[float, ...]
    caption_to_image: Tensor
    image_ids: tuple[int | str, ...]
    caption_ids: tuple[int | str, ...]

    def recalls(self, images: Tensor, captions: Tensor, image_index: Tensor) -> Recalls:
        """Rank some of the images and captions.

        Args:
            images: (i,) rows of the images that take part.
            captions: (c,) columns of the captions that take part.
            image_index: (c,) the index in ``images`` of each caption's image.

        Raises:
            ModelError: a similarity is not finite.
        """
        own = self._own(images, captions, image_index)
        best = torch.full((len(images),), -torch.inf, dtype=torch.float64)
        best.scatter_reduce_(0, image_index, own, "amax")
        above_image = torch.zeros(len(images), dtype=torch.int64)
        above_caption = torch.zeros(len(captions), dtype=torch.int64)
        rows = max(_TILE_ELEMENTS // max(len(captions), 1), 1)
        for start in range(0, len(images), rows):
            scores = self._scores(images[start : start + rows], captions)
            if not scores.isfinite().all():
                raise ModelError(
                    "a similarity is not finite; save them from a model that has not diverged"
                )
            mine = ((image_index >= start) & (image_index < start + rows)).nonzero().squeeze(1)
            scores[image_index[mine] - start, mine] = -torch.inf
            above_image[start : start + rows] = (scores >= best[start : start + rows, None]).sum(1)
            above_caption += (scores >= own).sum(0)
        queries = torch.bincount(image_index).nonzero().squeeze(1)
        return Recalls(
            DirectionRecalls.from_ranks(above_image[queries] + 1),
            DirectionRecalls.from_ranks(above_caption + 1),
        )

    def _scores(self, images: Tensor, captions: Tensor) -> Tensor:
        columns = captions.numpy()
        whole = np.array_equal(columns, np.arange(len(self.caption_ids)))
        total = np.zeros((len(images), len(captions)))
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            part = matrix[images.numpy()]
            # Two roundings here and in `_own`, so that equal similarities stay equal.
            with np.errstate(invalid="ignore"):  # a signaling NaN, which is refused as any NaN is
                total += weight * (part if whole else part[:, columns]).astype(np.float64)
        return torch.from_numpy(total)

    def _own(self, images: Tensor, captions: Tensor, image_index: Tensor) -> Tensor:
        rows, columns = images[image_index].numpy(), captions.numpy()
        total = np.zeros(len(captions))
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            with np.errstate(invalid="ignore"):  # as in `_scores`
                total += weight * matrix[rows, columns].astype(np.float64)
        return torch.from_numpy(total)


def open_similarities(
    files: Sequence[tuple[Path, float]],
    image_ids: Sequence[int | str],
    caption_ids: Sequence[int | str],
    caption_to_image: Tensor,
) -> Similarities:
    """Map ``.npy`` files of (I, C) similarities, rows and columns in the order of the ids.

    Raises:
        DatasetError: a file is missing, damaged or of another shape.
    """
    matrices = []
    wanted = (len(image_ids), len(caption_ids))
    for path, _ in files:
        matrix = open_array(path)
        if matrix.shape != wanted or not np.issubdtype(matrix.dtype, np.floating):
            raise DatasetError(
                f"{path}: holds {matrix.dtype} of shape {matrix.shape}; the split has "
                f"{wanted[0]:,} images and {wanted[1]:,} captions, give floats of that shape"
            )
        matrices.append(matrix)
    weights = tuple(weight for _, weight in files)
    return Similarities(
        tuple(matrices), weights, caption_to_image, tuple(image_ids), tuple(caption_ids)
    )


def open_array(path: Path) -> NDArray[np.floating]:
    """Map a ``.npy`` file for reading.

    Raises:
        DatasetError: it is missing, damaged or holds objects.
    """
    try:
        array: NDArray[np.floating] = open_npy(path)
    except OSError as error:
        reason = error.strerror or error
        raise DatasetError(f"{path}: cannot be read ({reason}); give a .npy file") from error
    except ValueError as error:
        raise DatasetError(f"{path}: is no whole .npy file ({error})") from error
    return array


def as_rows(array: NDArray[np.floating]) -> Tensor:
    """Return a mapped array as a tensor over the same memory, to be read only."""
    with warnings.catch_warnings():
        # The warning is about writing to it; the library only reads.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
