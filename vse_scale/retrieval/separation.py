"""Similarities of right pairs and of the hardest wrong ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_kernels.exact import full_precision
from vse_scale.retrieval.encode import Embeddings

BINS = 200  # from -1 to 1
_TILE = 1024  # captions whose scores are held at once


def similarity_histograms(embeddings: Embeddings) -> dict[str, list[int]]:
    """Count the captions of a split by similarity, in ``BINS`` equal bins from -1 to 1.

    Returns:
        ``positive``: with their own image; ``hardest_negative``: with the most similar other one.
        A split of one image has no negatives.
    """
    positive, hardest = caption_similarities(embeddings)
    return {"positive": _counts(positive), "hardest_negative": _counts(hardest)}


@full_precision()
def caption_similarities(
    embeddings: Embeddings,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each caption's similarity with its image and with the hardest other, (C,) both."""
    images, image_index = (
        embeddings.images,
        embeddings.caption_to_image.to(embeddings.images.device),
    )
    own: list[Tensor] = []
    hardest: list[Tensor] = []
    for start in range(0, len(image_index), _TILE):
        mine = image_index[start : start + _TILE, None]
        scores = embeddings.captions[start : start + _TILE] @ images.T
        own.append(scores.gather(1, mine).squeeze(1).cpu())
        scores.scatter_(1, mine, -torch.inf)
        hardest.append(scores.amax(1).cpu())
    return torch.cat(own).float().numpy(), torch.cat(hardest).float().numpy()


def _counts(similarities: NDArray[np.float32]) -> list[int]:
    finite = similarities[np.isfinite(similarities)]
    counts: list[int] = np.histogram(finite.clip(-1, 1), BINS, (-1.0, 1.0))[0].tolist()
    return counts
