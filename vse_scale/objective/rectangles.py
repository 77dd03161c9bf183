"""Rectangles of the score matrix, each of which a GPU's kernels take at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vse_scale.objective.batch import GlobalBatch


def kernels_serve(batch: GlobalBatch, limit: Tensor | None) -> bool:
    """Return whether the kernels of `vse_kernels.contrastive` take the batch's scores.

    Not where some negatives are ignored: an image's captions have each a limit of their own, and
    would make a row each.
    """
    return batch.captions.is_cuda and batch.captions.dtype != torch.float64 and limit is None


@dataclass(frozen=True)
class Rectangle:
    """Some images against some captions, each image once.

    Attributes:
        images: (m, D), in the dtype that embeddings were given in.
        captions: (n, D), likewise.
        image_ids: (m,), -1 for padding.
        caption_ids: (n,), likewise.
        times: (m,) number of an image's captions that are no padding; None: one.
        image_rows: place of the images in the batch.
        pairs: place of the captions.
        of_images: whether the images are this rank's.
        of_captions: whether the captions are.
    """

    images: Tensor
    captions: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    times: Tensor | None
    image_rows: slice
    pairs: slice
    of_images: bool
    of_captions: bool

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings and ids, as the kernels take them."""
        return self.images, self.captions, self.image_ids, self.caption_ids


def rectangles(batch: GlobalBatch) -> Iterator[Rectangle]:
    """Yield this rank's images against all captions, and all images against its captions.

    On one rank these are one. On several, a rank's own scores are computed for either.
    """
    times = None
    if batch.per_image > 1:
        times = (batch.ids >= 0).view(len(batch.image_rows), -1).sum(1).float()
    every, own = slice(0, len(batch.captions)), batch.own
    sides = [(own, every, True, batch.alone)]
    if not batch.alone:
        sides.append((every, own, False, True))
    images, captions = batch.image_rows.to(batch.given), batch.captions.to(batch.given)
    for of_images, pairs, own_images, own_captions in sides:
        rows = batch.rows_of(of_images)
        yield Rectangle(
            images[rows],
            captions[pairs],
            batch.image_ids[rows],
            batch.ids[pairs],
            None if times is None else times[rows],
            rows,
            pairs,
            own_images,
            own_captions,
        )
