"""The hardest negatives of a rank's images and captions, out of the whole global batch.

An image is mined once, however many captions it has: scores are (images, captions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from vse_kernels import hardest_negatives
from vse_scale.objective.batch import GlobalBatch, limit_of, rounding_of

Mode = Literal["all", "hardest", "semi-hard"]
Reduction = Literal["sum", "mean"]
Precision = Literal["exact", "fast"]


def check_choices(mode: str, reduction: str, mining_precision: str = "exact") -> None:
    """Raise ValueError where one of them is unknown."""
    for name, value, kind in (
        ("mode", mode, Mode),
        ("reduction", reduction, Reduction),
        ("mining_precision", mining_precision, Precision),
    ):
        if value not in get_args(kind):
            known = " or ".join(f'"{one}"' for one in get_args(kind))
            raise ValueError(f'{name} is "{value}"; it must be {known}')


@dataclass(frozen=True)
class HingeOptions:
    """The options of `global_hinge_loss`."""

    margin: float | Tensor
    mode: Mode
    reduction: Reduction
    ignore_above: float | None
    mining_precision: Precision = "exact"

    def limit(self, positive: Tensor) -> Tensor | None:
        """Return the largest score of a negative of each pair (B,), given the pairs'; None: any."""
        limit = limit_of(positive, self.ignore_above)
        if self.mode != "semi-hard":
            return limit
        below = positive - rounding_of(positive)
        return below if limit is None else torch.minimum(below, limit)


@dataclass(frozen=True)
class Mined:
    """The hardest negatives of this rank's images, and of its captions; all (b,) pairs.

    ``index`` is into the captions, or the image rows, of the global batch and -1 where there is
    none, ``similarity`` 0 there. ``violates`` tells which enter the loss, and ``hinge`` is their
    share of it.
    """

    index: Tensor
    similarity: Tensor
    violates: Tensor
    hinge: Tensor


def mine(batch: GlobalBatch, options: HingeOptions) -> tuple[Mined, Mined]:
    """Return the hardest negatives of this rank's images and of its captions."""
    positive, margin = batch.positive[batch.own], options.margin
    if isinstance(margin, Tensor):
        margin = margin[batch.own]
    limit = options.limit(positive)
    by_image, by_caption = _chosen(batch, limit, options.mining_precision)
    # The same kind of product as the positive's: a tile's last bits would not cancel.
    of_images = (batch.own_images[:, None] * batch.captions[by_image.clamp(min=0)]).sum(2)
    of_captions = (batch.own_captions * batch.image_rows[by_caption.clamp(min=0)]).sum(1)
    sides = []
    for index, similarity in ((by_image, of_images), (by_caption, of_captions)):
        pairs = (len(batch.own_images), batch.per_image) if index.dim() == 2 else index.shape
        index, similarity = (value.expand(pairs).flatten() for value in (index, similarity))
        index = index.masked_fill(~batch.own_valid, -1)
        found = index >= 0
        similarity = similarity.where(found, 0.0)
        hinge = margin + similarity - positive
        # `~(hinge <= 0)` rather than `hinge > 0`: NaN must violate, and show in the loss.
        violates = found & ~(hinge <= 0)
        sides.append(Mined(index, similarity, violates, hinge.where(violates, 0.0)))
    return sides[0], sides[1]


def _chosen(
    batch: GlobalBatch, limit: Tensor | None, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Return the hardest captions of this rank's images, (n, 1), and images of its captions, (b,).

    With a limit of each pair, an image has one for each of its captions: (n, b / n).
    """
    rows, captions, own = batch.image_rows, batch.captions, batch.own
    if limit is None and precision == "fast":
        rows, captions = rows.bfloat16(), captions.bfloat16()
    if limit is None and batch.alone:  # both from one pass
        found = hardest_negatives(rows, captions, batch.image_ids, batch.ids)
        return found.row_index[:, None], cast("Tensor", found.column_index)
    own_rows = batch.rows_of(own)
    of_images = hardest_negatives(
        rows[own_rows],
        captions,
        batch.image_ids[own_rows],
        batch.ids,
        columns=False,
        query_limit=None if limit is None else limit.view(-1, batch.per_image),
    )
    of_captions = hardest_negatives(
        captions[own], rows, batch.ids[own], batch.image_ids, columns=False, query_limit=limit
    )
    return of_images.row_index.view(own_rows.stop - own_rows.start, -1), of_captions.row_index
