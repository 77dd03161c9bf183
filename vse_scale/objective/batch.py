"""The global batch of embeddings, gathered once, and its scores in tiles that are never all stored.

Embeddings and ids are gathered without autograd. From these each rank computes the gradient of the
*global* loss with respect to its own embeddings, so no gradient of an embedding crosses ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vse_kernels.hardest.reference import masked_pairs
from vse_scale.world.gather import Exchange

# Scores at once: 4 MB in float32, so that what is made of a tile stays in a CPU's cache.
TILE_ROWS = 512
TILE_COLUMNS = 2048


@dataclass(frozen=True)
class Tile:
    """Scores of some images, each repeated for its captions, with some captions.

    Attributes:
        rows: pairs whose images are the rows, a slice of the global batch.
        columns: pairs whose captions are the columns, likewise.
        scores: (r, c) dot products, -inf where the pairs are no negatives of each other: their ids
            are equal, or one is padding.
    """

    rows: slice
    columns: slice
    scores: Tensor


@dataclass(frozen=True)
class Sweep:
    """A part of the score matrix that this rank computes.

    Attributes:
        rows: pairs by their images.
        columns: pairs by their captions.
        of_images: whether the rows are this rank's own, and whole.
        of_captions: whether the columns are.
    """

    rows: slice
    columns: slice
    of_images: bool
    of_captions: bool


@dataclass(frozen=True)
class GlobalBatch:
    """Embeddings and ids of all ranks.

    Attributes:
        image_rows: (N, D), one row an image.
        captions: (B, D), B / N of each image, which are neighbours.
        ids: (B,) int64, -1 for padding.
        positive: (B,) dot product of each pair.
        own: the pairs of this rank.
    """

    image_rows: Tensor
    captions: Tensor
    ids: Tensor
    positive: Tensor
    own: slice

    @classmethod
    def gather(
        cls, images: Tensor, captions: Tensor, ids: Tensor, valid: Tensor, exchange: Exchange
    ) -> GlobalBatch:
        """Gather (n, D), (b, D), (b,) and (b,) of every rank, at least in float32.

        Raises:
            ValueError: b is no multiple of n, or one of them is 0.
        """
        count, per_image = len(captions), captions_per_image(images, captions)
        images, captions = _without_padding(images, captions, valid, per_image)
        wide = torch.promote_types(images.dtype, torch.float32)
        if exchange.ranks == 1:
            all_images, all_captions = images.to(wide), captions.to(wide)
        else:
            # An image's row travels once, however many captions it has.
            both = exchange.gather(torch.cat([images, captions]).to(wide)[None])
            all_images, all_captions = (
                side.flatten(0, 1) for side in torch.split(both, [len(images), count], dim=1)
            )
        return cls(
            image_rows=all_images,
            captions=all_captions,
            ids=exchange.gather(torch.where(valid, ids, -1)),
            positive=_products_of_pairs(all_images, all_captions),
            own=slice(exchange.rank * count, (exchange.rank + 1) * count),
        )

    @property
    def per_image(self) -> int:
        """Number of an image's captions."""
        return len(self.captions) // len(self.image_rows)

    @cached_property
    def image_ids(self) -> Tensor:
        """(N,) ids of the images, -1 for one whose captions are all padding."""
        return self.ids.view(len(self.image_rows), -1).amax(1)

    @property
    def own_images(self) -> Tensor:
        """(n, D), this rank's."""
        return self.image_rows[self.rows_of(self.own)]

    @property
    def own_captions(self) -> Tensor:
        """(b, D), this rank's."""
        return self.captions[self.own]

    @property
    def own_valid(self) -> Tensor:
        """(b,) bool, this rank's pairs that are no padding."""
        return self.ids[self.own] >= 0

    @property
    def pairs(self) -> Tensor:
        """Number of valid pairs on all ranks, at least 1."""
        return (self.ids >= 0).sum().clamp(min=1)

    def rows_of(self, pairs: slice) -> slice:
        """Return the image rows of ``pairs``, which are whole images'."""
        return slice(pairs.start // self.per_image, pairs.stop // self.per_image)

    def cut_to(self, size: int) -> GlobalBatch:
        """Return the batch of the first ``size`` dimensions, its rows of unit length again."""
        image_rows, captions = (cut(side, size) for side in (self.image_rows, self.captions))
        shorter = replace(self, image_rows=image_rows, captions=captions)
        return replace(shorter, positive=_products_of_pairs(image_rows, captions))

    def own_part(self, pairs: slice) -> slice:
        """Return the place of ``pairs``, some of this rank's, among this rank's."""
        return _within(pairs, self.own)

    def sweeps(self) -> tuple[Sweep, ...]:
        """Return this rank's rows and its columns of the score matrix; on one rank they are all."""
        whole = slice(0, len(self.captions))
        if self.own == whole:
            return (Sweep(whole, whole, of_images=True, of_captions=True),)
        return (
            Sweep(self.own, whole, of_images=True, of_captions=False),
            Sweep(whole, self.own, of_images=False, of_captions=True),
        )

    def tiles(self, sweep: Sweep) -> Iterator[Tile]:
        """Compute the scores of a sweep tile by tile."""
        for rows in _spans(sweep.rows, max(1, TILE_ROWS // self.per_image) * self.per_image):
            left, ids = self.image_rows[self.rows_of(rows)], self.ids[rows]
            for columns in _spans(sweep.columns, TILE_COLUMNS):
                scores = left @ self.captions[columns].T
                if self.per_image > 1:
                    scores = scores.repeat_interleave(self.per_image, dim=0)
                masked = masked_pairs(ids, self.ids[columns])
                yield Tile(rows, columns, scores.masked_fill_(masked, -torch.inf))


def captions_per_image(images: Tensor, captions: Tensor) -> int:
    """Return b / n for ``images`` (n, D) and ``captions`` (b, D).

    Raises:
        ValueError: b is no multiple of n, or one of them is 0.
    """
    if not len(images) or not len(captions) or len(captions) % len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, captions {tuple(captions.shape)}; every "
            "image must have as many captions"
        )
    return len(captions) // len(images)


def _products_of_pairs(images: Tensor, captions: Tensor) -> Tensor:
    """Return the dot product (b,) of each of ``captions`` (b, D) with its image of (n, D)."""
    # Rather than with a repeated copy of the images.
    of_images = captions.view(len(images), -1, captions.shape[1])
    return (images[:, None] * of_images).sum(2).flatten()


def _without_padding(
    images: Tensor, captions: Tensor, valid: Tensor, per_image: int
) -> tuple[Tensor, Tensor]:
    """Return the rows with zeros for padding: in a product, 0 times NaN is NaN."""
    # On a GPU it is cheaper to do than to ask.
    if not valid.is_cuda and bool(valid.all()):
        return images, captions
    served = valid.view(len(images), per_image).any(1)
    zero = images.new_zeros(())
    return images.where(served[:, None], zero), captions.where(valid[:, None], zero)


def limit_of(positive: Tensor, ignore_above: float | None) -> Tensor | None:
    """Return the largest score (B,) of a negative of each pair, given the pairs'; None: any."""
    return None if ignore_above is None else positive + ignore_above + rounding_of(positive)


def rounding_of(positive: Tensor) -> Tensor:
    """Return by how much equal scores (B,) may differ that come from products of other shapes."""
    return 8 * torch.finfo(positive.dtype).eps * positive.abs().clamp(min=1)


class Gradient:
    """The gradient of this rank's embeddings, from the derivatives of the scores tile by tile.

    Attributes:
        images: (n, D).
        captions: (b, D).
    """

    def __init__(self, batch: GlobalBatch) -> None:
        self._batch = batch
        self.images = torch.zeros_like(batch.own_images)
        self.captions = torch.zeros_like(batch.own_captions)

    def add(self, sweep: Sweep, tile: Tile, weight: Tensor) -> None:
        """Add the part of a tile of whose scores the derivatives are ``weight`` (r, c)."""
        batch = self._batch
        if batch.per_image > 1:
            weight = weight.view(-1, batch.per_image, weight.shape[1]).sum(1)
        rows = batch.rows_of(tile.rows)
        if sweep.of_images:
            own = _within(rows, batch.rows_of(batch.own))
            self.images[own].addmm_(weight, batch.captions[tile.columns])
        if sweep.of_captions:
            own = batch.own_part(tile.columns)
            self.captions[own].addmm_(weight.T, batch.image_rows[rows])

    def add_pairs(self, weight: Tensor) -> None:
        """Add the part of this rank's pairs, with their scores' derivatives ``weight`` (b,)."""
        batch, weight = self._batch, weight[:, None]
        pulled = (weight * batch.own_captions).view(len(self.images), -1, self.images.shape[1])
        self.images += pulled.sum(1)
        self.captions += weight * batch.own_images.repeat_interleave(batch.per_image, 0)


def cut(rows: Tensor, size: int) -> Tensor:
    """Return the first ``size`` dimensions of ``rows`` (n, D), of unit length again."""
    return torch.nn.functional.normalize(rows[:, :size], dim=1)


def _spans(within: slice, step: int) -> list[slice]:
    starts = range(within.start, within.stop, step)
    return [slice(start, min(start + step, within.stop)) for start in starts]


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def with_gradient(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return ``loss`` with a graph that gives each of ``inputs`` its gradient, known already.

    A graph that ``loss`` has goes on.
    """
    result: Tensor = _WithGradient.apply(loss, len(inputs), *inputs, *gradients)  # type: ignore[no-untyped-call]
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        inputs, gradients = tensors[:count], tensors[count:]
        moved = (g.to(i.device, i.dtype) for i, g in zip(inputs, gradients, strict=True))
        ctx.save_for_backward(*moved)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [grad.to(value.device) * value for value in ctx.saved_tensors]
        return (grad, None, *gradients, *(None for _ in gradients))
