"""The hinge loss with negatives out of the whole global batch, and its exact gradient.

Embeddings and ids are gathered once, without autograd. From these each rank computes the gradient
of the *global* loss with respect to its own embeddings, so no gradient of an embedding ever crosses
ranks. In "hardest" mode a rank's embeddings also appear as other ranks' negatives: each rank mines
its own rows (its images against all captions) and columns (its captions against all images) and
gathers what it chose, two integers per pair. So no rank decides again what rounding could decide
otherwise.

The loss is the sum of margin + x_i . y_r(i) - x_i . y_i over the images whose hardest negative r(i)
violates the margin, and of margin + x_c(j) . y_j - x_j . y_j over such captions. So for an image

    dL/dx_i = [i violates] (y_r(i) - y_i) - [caption i violates] y_i + sum of y_j with c(j) = i

and the same for a caption with the roles exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vse_kernels import Violations, all_violations
from vse_scale.objective.base import ObjectiveResult
from vse_scale.objective.batch import GlobalBatch
from vse_scale.objective.gradient import with_gradient
from vse_scale.objective.mining import (
    HingeOptions,
    Mined,
    Mode,
    Precision,
    Reduction,
    check_choices,
    mine,
)
from vse_scale.world.gather import Exchange

SUMS = 5  # `_local_sums`, float64


@dataclass(frozen=True)
class HingeResult(ObjectiveResult):
    """A global hinge loss with figures about it.

    Attributes:
        sums: (4,) float64, over all ranks: anchors that violate, positive similarity, hardest
            negatives found, and their similarity. Anchors are images and captions alike.
        pairs: scalar, valid pairs on all ranks.
    """

    sums: Tensor
    pairs: Tensor

    @property
    def statistics(self) -> dict[str, float]:
        """The three figures below by name."""
        figures = hinge_figures(self.sums, self.pairs)
        return {name: float(value) for name, value in figures.items()}

    @property
    def violating(self) -> float:
        """Share of valid images and captions that have a violating negative, 0 to 1."""
        return self.statistics["violating"]

    @property
    def positive_similarity(self) -> float:
        """Mean dot product of valid pairs."""
        return self.statistics["positive_similarity"]

    @property
    def hardest_similarity(self) -> float:
        """Mean dot product with the hardest negative, over the anchors that have one."""
        return self.statistics["hardest_similarity"]


def hinge_figures(sums: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """Return the figures of `HingeResult` by name."""
    return {
        "violating": sums[0] / (2 * pairs),
        "positive_similarity": sums[1] / pairs,
        "hardest_similarity": sums[3] / sums[2].clamp(min=1),
    }


def global_hinge_loss(
    images: Tensor,
    captions: Tensor,
    *,
    ids: Tensor,
    valid: Tensor,
    margin: float | Tensor = 0.2,
    mode: Mode = "hardest",
    reduction: Reduction = "sum",
    ignore_above: float | None = None,
    mining_precision: Precision = "exact",
    group: dist.ProcessGroup | None = None,
) -> HingeResult:
    """Compute `hinge_loss` of the batches of all ranks together.

    Needs no process group on one process. Products run in float32 (float64 for float64
    embeddings) under autocast too.

    Args:
        images: (n, D) this rank's unit rows; n and b are the same on every rank.
        captions: (b, D) unit rows, b / n of each image, which are neighbours.
        ids: (b,) int64, not negative; pairs with equal ids, on any rank, are never each other's
            negatives.
        valid: (b,) bool; what is False is padding.
        margin: by how much a pair should beat a negative; or (b,), each pair's own.
        mode: a negative's choice, as in `hinge_loss`.
        reduction: "mean" divides by the number of valid pairs on all ranks.
        ignore_above: as in `hinge_loss`.
        mining_precision: "fast" chooses the hardest negatives by bfloat16 embeddings; loss and
            gradient of those chosen are exact in either. "semi-hard" and ``ignore_above`` compare
            with the pair's own score, and are always exact.
        group: the ranks; None means all.

    Raises:
        ValueError: ``mode``, ``reduction`` or ``mining_precision`` is unknown, b is no multiple of
            n, or one is 0.
    """
    check_choices(mode, reduction, mining_precision)
    exchange = Exchange(group, images.device)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        batch = GlobalBatch.gather(images, captions, ids, valid, exchange)
        hinge = HingeOptions(margin, mode, reduction, ignore_above, mining_precision)
        loss, gradients, sums = hinge_of_batch(batch, hinge, exchange)
    loss = with_gradient(loss.to(batch.captions.dtype), (images, captions), gradients)
    return HingeResult(loss=loss, exchange=exchange, sums=sums, pairs=batch.pairs)


def hinge_of_batch(
    batch: GlobalBatch, options: HingeOptions, exchange: Exchange
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the loss, the gradients (n, D) and (b, D), and the sums of `HingeResult`."""
    if isinstance(options.margin, Tensor):
        margins = exchange.gather(options.margin.to(batch.captions))
        options = replace(options, margin=margins)
    mined = mine(batch, options)
    compute = _all if options.mode == "all" else _hardest
    loss, grads, sums = compute(batch, mined, options, exchange)
    if options.reduction == "mean":
        loss, grads = loss / batch.pairs, [grad / batch.pairs for grad in grads]
    return loss, grads, sums


def chosen_numbers(mode: str, captions: int) -> int:
    """Return the number of integers that tell the other ranks a rank's choices."""
    return 0 if mode == "all" else 2 * captions


def _local_sums(batch: GlobalBatch, mined: tuple[Mined, Mined], loss: Tensor) -> Tensor:
    """This rank's share of the loss and of `HingeResult.sums`, (5,) float64."""
    own_valid = batch.ids[batch.own] >= 0
    sums = (
        loss,
        sum(side.violates.sum() for side in mined),
        batch.positive[batch.own].where(own_valid, 0.0).sum(dtype=torch.float64),
        sum((side.index >= 0).sum() for side in mined),
        sum(side.similarity.sum(dtype=torch.float64) for side in mined),
    )
    return torch.stack([torch.as_tensor(value).double() for value in sums])


def _hardest(
    batch: GlobalBatch, mined: tuple[Mined, Mined], options: HingeOptions, exchange: Exchange
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the global loss, this rank's gradients and the global statistics."""
    loss = sum(side.hinge.sum(dtype=torch.float64) for side in mined)
    chosen = torch.stack([side.index.where(side.violates, -1) for side in mined])
    count = chosen.shape[1]
    # One collective for both: the sums travel as the bits of integers.
    sums = _local_sums(batch, mined, torch.as_tensor(loss)).view(torch.int64)
    gathered = exchange.gather(torch.cat([chosen.flatten(), sums])[None])
    totals = gathered[:, 2 * count :].contiguous().view(torch.float64).sum(0)
    of_images, of_captions = gathered[:, : 2 * count].view(-1, 2, count).unbind(1)
    return (
        totals[0],
        _hardest_gradients(batch, of_images.flatten(), of_captions.flatten()),
        totals[1:],
    )


def _hardest_gradients(batch: GlobalBatch, of_images: Tensor, of_captions: Tensor) -> list[Tensor]:
    """The formula at the top of this module for this rank's rows, (n, D) and (b, D).

    ``of_images`` has the caption, and ``of_captions`` the image, that each of all pairs (B,) chose
    and that violates, or -1.
    """
    own, rows, each = batch.own, batch.rows_of(batch.own), batch.per_image
    caption, image = of_images[own, None], of_captions[own, None]
    by_image, by_caption = caption >= 0, image >= 0
    # In place: each of these is as large as the embeddings.
    partners = batch.own_captions
    pulled = batch.captions[caption[:, 0].clamp(min=0)].sub_(partners).mul_(by_image)
    pulled.addcmul_(partners, by_caption.to(pulled), value=-1)
    to_images = pulled.view(len(batch.own_images), each, -1).sum(1)
    partners = batch.own_images.repeat_interleave(each, 0)
    to_captions = batch.image_rows[image[:, 0].clamp(min=0)].sub_(partners).mul_(by_caption)
    to_captions.addcmul_(partners, by_image.to(pulled), value=-1)
    return [
        to_images.add_(_sum_of_choosers(batch.captions, 1, of_captions, rows)),
        to_captions.add_(_sum_of_choosers(batch.image_rows, each, of_images, own)),
    ]


def _sum_of_choosers(choosers: Tensor, each: int, choice: Tensor, own: slice) -> Tensor:
    """Add up the rows of ``choosers`` by those in ``own`` that they chose, in a fixed order.

    ``choice`` (B,) has ``each`` entries for each of ``choosers`` (B / each, D), -1 for none.
    """
    count, slot = own.stop - own.start, choice - own.start
    inside = (slot >= 0) & (slot < count) & (choice >= 0)
    if not choosers.is_cuda:
        total = choosers.new_zeros(count, choosers.shape[1])
        chosen = inside.nonzero()[:, 0]
        return total.index_add_(0, slot[chosen], choosers[chosen // each])
    # To select would wait for the device. The others add to a second half, which is dropped; they
    # are spread over it, since a GPU serialises additions to one row.
    elsewhere = count + torch.arange(len(slot), device=slot.device) % count
    slot = slot.where(inside, elsewhere)
    total = choosers.new_zeros(2 * count, choosers.shape[1])
    # Sorts first; index_add_ would add atomically, in any order.
    total.index_put_((slot,), choosers.repeat_interleave(each, 0), accumulate=True)
    return total[:count]


class _Anchors(NamedTuple):
    """Rows (M, D) of one side with their ids; of each the scores and limits of its pairs."""

    rows: Tensor
    ids: Tensor
    positive: Tensor
    limit: Tensor | None

    def part(self, own: slice) -> _Anchors:
        limit = None if self.limit is None else self.limit[own]
        return _Anchors(self.rows[own], self.ids[own], self.positive[own], limit)

    def against(self, others: _Anchors, margin: float, both: bool = False) -> Violations:
        return all_violations(
            self.rows,
            others.rows,
            self.ids,
            others.ids,
            self.positive,
            others.positive,
            margin,
            candidate_gradient=both,
            query_limit=self.limit,
            candidate_limit=others.limit,
        )


def _all(
    batch: GlobalBatch, mined: tuple[Mined, Mined], options: HingeOptions, exchange: Exchange
) -> tuple[Tensor, list[Tensor], Tensor]:
    """As `_hardest`, for every violating negative."""
    own, margin = batch.own, options.margin
    limit = options.limit(batch.positive)
    # The padding among an image's captions: an infinite score is never violated.
    positive = batch.positive.masked_fill(batch.ids < 0, torch.inf)
    if isinstance(margin, Tensor):
        positive, margin = positive - margin, 0.0
    captions = _Anchors(batch.captions, batch.ids, positive, limit)
    images = _Anchors(
        batch.image_rows,
        batch.image_ids,
        positive.view(-1, batch.per_image),
        None if limit is None else limit.view(-1, batch.per_image),
    )
    if batch.alone:
        of_images = images.against(captions, margin, both=True)
        caption_loss, caption_count = of_images.column_loss, of_images.column_count
        to_captions = cast("Tensor", of_images.candidate_gradient)
    else:
        of_images = images.part(batch.rows_of(own)).against(captions, margin)
        of_captions = captions.part(own).against(images, margin)
        caption_loss, caption_count = of_captions.row_loss, of_captions.row_count
        to_captions = of_captions.query_gradient
    loss = of_images.row_loss.sum(dtype=torch.float64) + caption_loss.sum(dtype=torch.float64)
    # Each violation of an image or of its caption pulls their own similarity up.
    pull = (of_images.row_count.flatten() + caption_count)[:, None]
    to_images = of_images.query_gradient
    pulled = (pull * batch.own_captions).view(len(to_images), -1, to_images.shape[1])
    partners = batch.own_images.repeat_interleave(batch.per_image, 0)
    grads = [to_images - pulled.sum(1), to_captions - pull * partners]
    totals = exchange.gather(_local_sums(batch, mined, loss)[None]).sum(0)
    return totals[0], grads, totals[1:]
