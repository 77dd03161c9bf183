"""Ranks, recalls and nearest neighbours between images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_kernels import paired_ranks
from vse_kernels.exact import full_precision
from vse_scale.errors import ModelError
from vse_scale.retrieval.metrics import DirectionRecalls, Recalls
from vse_scale.world.processes import ALONE, Processes

Rows: TypeAlias = Tensor | NDArray[np.floating]
Indices: TypeAlias = Tensor | NDArray[np.integer] | Sequence[int]

__all__ = [
    "DirectionRecalls", "QueryRanks", "Recalls", "matching_rows", "nearest", "query_ranks",
    "recall_at_k",
]  # fmt: skip

_QUERY_TILE = 256
_CANDIDATE_TILE = 8192
_CHECKED_ROWS = 8192  # at once, for being finite
_LARGEST_COLUMN = 2**32 - 1


@dataclass(frozen=True)
class QueryRanks:
    """The rank of every query, 1 the best.

    Attributes:
        image_queries: (Q,) int64, the images that have a caption, ascending.
        i2t: (Q,) int64, the rank of each of these images' best own caption among all captions.
        t2i: (C,) int64, the rank of each caption's image among all images.
    """

    image_queries: Tensor
    i2t: Tensor
    t2i: Tensor

    def recalls(self) -> Recalls:
        """Summarise both directions."""
        return Recalls(DirectionRecalls.from_ranks(self.i2t), DirectionRecalls.from_ranks(self.t2i))


def recall_at_k(
    image_embeddings: Rows,
    caption_embeddings: Rows,
    caption_to_image: Indices,
    processes: Processes = ALONE,
) -> Recalls:
    """Return the recalls of both directions, by inner product.

    A query's rank is 1 + the number of *other* candidates that score at least its best positive,
    so a collapsed model, whose scores all tie, ranks last. An image without captions is a
    candidate for captions and no query.

    Args:
        image_embeddings: (I, D) float, unit rows for cosine similarity.
        caption_embeddings: (C, D) float, C >= 1. Products are taken in float64 if either side is
            float64 and in float32 otherwise.
        caption_to_image: (C,) integers in [0, I), each caption's image.
        processes: that share the work; all call with the same embeddings and get the same.

    Raises:
        ValueError: shapes or indices do not fit.
        ModelError: an embedding is not finite.
    """
    ranks = query_ranks(image_embeddings, caption_embeddings, caption_to_image, processes)
    return ranks.recalls()


def query_ranks(
    image_embeddings: Rows,
    caption_embeddings: Rows,
    caption_to_image: Indices,
    processes: Processes = ALONE,
) -> QueryRanks:
    """Return every query's rank; arguments and errors are those of `recall_at_k`."""
    images, captions = matching_rows(image_embeddings, caption_embeddings)
    image_index = _checked_index(caption_to_image, len(captions), len(images))

    of_images, of_captions = paired_ranks(
        images, captions, image_index.to(images.device), processes.share, processes.across
    )
    image_queries = of_images.nonzero().squeeze(1)
    return QueryRanks(
        image_queries=image_queries.cpu(),
        i2t=of_images[image_queries].cpu(),
        t2i=of_captions.cpu(),
    )


@full_precision()
def nearest(
    queries: Rows, candidates: Rows, k: int, *, checked: bool = False
) -> tuple[Tensor, Tensor]:
    """Return each query's ``k`` best candidates by inner product in float32, best first.

    Exact, in tiles: the score matrix is never whole. Equal scores go to the lower index.

    Args:
        queries: (M, D) float, on the device that does the work.
        candidates: (N, D) float, there or on the CPU, where they may be a mapped file.
        k: how many, at most N are returned.
        checked: whether a search has passed over all candidates before, and found them finite.

    Returns:
        scores (M, min(k, N)) float32 and indices (M, min(k, N)) int64.

    Raises:
        ValueError: widths differ, ``k`` < 1, or there is no candidate.
        ModelError: an embedding is not finite.
    """
    query_rows, candidate_rows = torch.as_tensor(queries), torch.as_tensor(candidates)
    check_widths(query_rows, candidate_rows)
    query_rows = query_rows.detach().float()
    _check_finite(query_rows)
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1 neighbour")
    k = min(k, len(candidate_rows))
    keys = torch.empty((len(query_rows), k), dtype=torch.int64, device=query_rows.device)
    for start in range(0, len(query_rows), _QUERY_TILE):
        tile = query_rows[start : start + _QUERY_TILE]
        keys[start : start + _QUERY_TILE] = _best_keys(
            tile, candidate_rows, k, checked=checked or start > 0
        )
    return _unpack(keys)


def _best_keys(queries: Tensor, candidates: Tensor, k: int, *, checked: bool) -> Tensor:
    best = queries.new_empty((len(queries), 0), dtype=torch.int64)
    for start in range(0, len(candidates), _CANDIDATE_TILE):
        tile = candidates[start : start + _CANDIDATE_TILE].detach().to(queries.device).float()
        if not checked:
            _check_finite(tile, start)
        scores = queries @ tile.T
        columns = torch.arange(start, start + len(tile), device=scores.device)
        merged = torch.cat([best, _pack(scores, columns)], dim=1)
        best = merged.topk(min(k, merged.shape[1]), dim=1).values
    return best


def _pack(scores: Tensor, columns: Tensor) -> Tensor:
    """Pack float32 score and column into one int64: order by score, then by lower column.

    ``topk`` leaves open which of several equal values it takes; packed keys are never equal.
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (_LARGEST_COLUMN - columns)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    ordered = keys >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.to(torch.int32).view(torch.float32), _LARGEST_COLUMN - (keys & _LARGEST_COLUMN)


def matching_rows(left: Rows, right: Rows) -> tuple[Tensor, Tensor]:
    """Bring two matrices of one width to one float dtype on one device.

    Raises:
        ValueError: their shapes do not fit, or one has no row.
        ModelError: a value is not finite.
    """
    tensors = [torch.as_tensor(rows).detach() for rows in (left, right)]
    wide = any(rows.dtype == torch.float64 for rows in tensors)
    dtype = torch.float64 if wide else torch.float32
    first, second = (rows.to(device=tensors[0].device, dtype=dtype) for rows in tensors)
    check_widths(first, second)
    for rows in (first, second):
        _check_finite(rows)
    return first, second


def check_widths(first: Tensor, second: Tensor) -> None:
    """Raise ValueError where these are not two matrices of one width, with a row each."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"embeddings are {tuple(first.shape)} and {tuple(second.shape)}; "
            "give two matrices of the same width"
        )
    if not len(first) or not len(second):
        raise ValueError(f"{len(first)} and {len(second)} embeddings; give at least one of each")


def _check_finite(rows: Tensor, first: int = 0) -> None:
    broken = torch.cat(
        [~torch.isfinite(part).all(dim=1) for part in torch.split(rows, _CHECKED_ROWS)]
    )
    if broken.any():
        raise ModelError(
            f"{int(broken.sum())} of {len(rows)} embeddings are not finite, the first is "
            f"number {first + int(broken.nonzero()[0])}; the model has diverged, go back to an "
            "earlier checkpoint"
        )


def _checked_index(caption_to_image: Indices, captions: int, images: int) -> Tensor:
    image_index = torch.as_tensor(caption_to_image).cpu()
    if image_index.shape != (captions,) or image_index.is_floating_point():
        raise ValueError(
            f"caption_to_image is {image_index.dtype} of shape {tuple(image_index.shape)}; "
            f"give one image index for each of {captions} captions"
        )
    image_index = image_index.to(torch.int64)
    if int(image_index.min()) < 0 or int(image_index.max()) >= images:
        raise ValueError(
            f"caption_to_image spans {int(image_index.min())} to {int(image_index.max())}, "
            f"but there are {images} images"
        )
    return image_index
