"""The global batch of embeddings, gathered once, and its scores in tiles that are never all stored.

Embeddings and ids are gathered without autograd. From these each rank computes the gradient of the
*global* loss with respect to its own embeddings, so no gradient of an embedding crosses ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vse_kernels.hardest.reference import masked_pairs
from vse_scale.world.gather import Exchange

# Scores at once: 4 MB in float32, so that what is made of a tile stays in a CPU's cache.
TILE_ROWS = 512
TILE_COLUMNS = 2048


@dataclass(frozen=True)
class Tile:
    """A part of the score matrix that this rank computes.

    Attributes:
        rows: pairs by their images, a slice of the global batch, of whole images.
        columns: pairs by their captions, likewise.
        of_images: whether the rows are this rank's own.
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
        given: the dtype that embeddings were given in, which holds these; None: no other.
    """

    image_rows: Tensor
    captions: Tensor
    ids: Tensor
    positive: Tensor
    own: slice
    given: torch.dtype | None = None

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
        given = torch.promote_types(images.dtype, captions.dtype)
        wide = torch.promote_types(given, torch.float32)
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
            given=given,
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
        shorter = replace(self, image_rows=image_rows, captions=captions, given=None)
        return replace(shorter, positive=_products_of_pairs(image_rows, captions))

    def rounded(self) -> GlobalBatch:
        """Return the batch with embeddings rounded to bfloat16, in which it then was given."""
        image_rows, captions = (
            side.bfloat16().to(side.dtype) for side in (self.image_rows, self.captions)
        )
        shorter = replace(self, image_rows=image_rows, captions=captions, given=torch.bfloat16)
        return replace(shorter, positive=_products_of_pairs(image_rows, captions))

    def own_part(self, pairs: slice) -> slice:
        """Return the place of ``pairs``, some of this rank's, among this rank's."""
        return _within(pairs, self.own)

    @property
    def alone(self) -> bool:
        """Whether all pairs are this rank's."""
        return self.own == slice(0, len(self.captions))

    def tiles(self, *, of_pairs: bool) -> Iterator[Tile]:
        """Cut this rank's rows and its columns of the score matrix, each place of them once.

        Args:
            of_pairs: as `scores` has it.
        """
        own, each = self.own, self.per_image
        height = max(1, TILE_ROWS // each) * each if of_pairs else TILE_ROWS * each
        parts = [(own, own)]
        for others in (slice(0, own.start), slice(own.stop, len(self.captions))):
            parts += [(own, others), (others, own)]
        for left, right in parts:
            for rows in _spans(left, height):
                for columns in _spans(right, TILE_COLUMNS):
                    yield Tile(rows, columns, of_images=left == own, of_captions=right == own)

    def scores(self, tile: Tile, *, of_pairs: bool, scale: float | Tensor = 1.0) -> Tensor:
        """Return the dot products of a tile, times ``scale``.

        Args:
            tile: one of `tiles`.
            of_pairs: whether an image has a row for each of its captions, or one row.
            scale: of the scores.

        Returns:
            (r, c) or (r / k, c), -inf where the pairs are no negatives of each other: their ids
            are equal, or one is padding.
        """
        rows = self.rows_of(tile.rows)
        scores = (self.image_rows[rows] * scale) @ self.captions[tile.columns].T
        of_images, of_captions = self._classes
        classes = of_images[rows]
        if of_pairs and self.per_image > 1:
            scores, classes = scores.repeat_interleave(self.per_image, 0), of_captions[tile.rows]
        return _without_matches(scores, classes, of_captions[tile.columns])

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor]:
        """``image_ids`` and ``ids``; on a CPU numbered anew, from 0."""
        if self.ids.is_cuda:
            return self.image_ids, self.ids
        found, classes = torch.unique(self.ids, return_inverse=True)
        classes -= (found < 0).sum()
        return classes.view(len(self.image_rows), -1).amax(1), classes


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


def _without_matches(scores: Tensor, row_classes: Tensor, column_classes: Tensor) -> Tensor:
    """Set ``scores`` (r, c) to -inf where classes are equal or -1, in place."""
    if not scores.is_cuda:
        # Few rows of a tile meet a column of theirs: to compare all takes as long as to score them.
        rows = _members(row_classes, column_classes)
        columns = _members(column_classes, row_classes)
        if 2 * len(rows) * len(columns) <= scores.numel():
            equal = row_classes[rows, None] == column_classes[columns]
            row, column = equal.nonzero(as_tuple=True)
            scores[rows[row], columns[column]] = -torch.inf
            for side, padding in ((scores, row_classes < 0), (scores.T, column_classes < 0)):
                if bool(padding.any()):
                    side[padding] = -torch.inf
            return scores
    return scores.masked_fill_(masked_pairs(row_classes, column_classes), -torch.inf)


def _members(some: Tensor, others: Tensor) -> Tensor:
    """Return the places of those ``some`` (s,) that are not -1 and among ``others``."""
    there = some.new_zeros(int(torch.maximum(some.amax(), others.amax())) + 2, dtype=torch.bool)
    there[others] = True
    there[-1] = False  # of padding
    return there[some].nonzero()[:, 0]


def limit_of(positive: Tensor, ignore_above: float | None) -> Tensor | None:
    """Return the largest score (B,) of a negative of each pair, given the pairs'; None: any."""
    return None if ignore_above is None else positive + ignore_above + rounding_of(positive)


def rounding_of(positive: Tensor) -> Tensor:
    """Return by how much equal scores (B,) may differ that come from products of other shapes."""
    return 8 * torch.finfo(positive.dtype).eps * positive.abs().clamp(min=1)


def cut(rows: Tensor, size: int) -> Tensor:
    """Return the first ``size`` dimensions of ``rows`` (n, D), of unit length again."""
    return torch.nn.functional.normalize(rows[:, :size], dim=1)


def _spans(within: slice, step: int) -> list[slice]:
    starts = range(within.start, within.stop, step)
    return [slice(start, min(start + step, within.stop)) for start in starts]


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)
