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
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from vse_kernels import all_violations, hardest_negatives
from vse_scale.objective.base import ObjectiveResult
from vse_scale.objective.batch import GlobalBatch, limit_of, rounding_of, with_gradient
from vse_scale.world.gather import Exchange

Mode = Literal["all", "hardest", "semi-hard"]
Reduction = Literal["sum", "mean"]

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


def check_choices(mode: str, reduction: str) -> None:
    """Raise ValueError where ``mode`` or ``reduction`` is unknown."""
    for name, value, kind in (("mode", mode, Mode), ("reduction", reduction, Reduction)):
        if value not in get_args(kind):
            known = " or ".join(f'"{one}"' for one in get_args(kind))
            raise ValueError(f'{name} is "{value}"; it must be {known}')


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
        group: the ranks; None means all.

    Raises:
        ValueError: ``mode`` or ``reduction`` is unknown, b is no multiple of n, or one is 0.
    """
    check_choices(mode, reduction)
    exchange = Exchange(group, images.device)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        batch = GlobalBatch.gather(images, captions, ids, valid, exchange)
        hinge = HingeOptions(margin, mode, reduction, ignore_above)
        loss, gradients, sums = hinge_of_batch(batch, hinge, exchange)
    loss = with_gradient(loss.to(batch.captions.dtype), (images, captions), gradients)
    return HingeResult(loss=loss, exchange=exchange, sums=sums, pairs=batch.pairs)


@dataclass(frozen=True)
class HingeOptions:
    """The options of `global_hinge_loss`."""

    margin: float | Tensor
    mode: Mode
    reduction: Reduction
    ignore_above: float | None

    def limit(self, positive: Tensor) -> Tensor | None:
        """Return the largest score of a negative of each pair (B,), given the pairs'; None: any."""
        limit = limit_of(positive, self.ignore_above)
        if self.mode != "semi-hard":
            return limit
        below = positive - rounding_of(positive)
        return below if limit is None else torch.minimum(below, limit)


def hinge_of_batch(
    batch: GlobalBatch, options: HingeOptions, exchange: Exchange
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the loss, the gradients (n, D) and (b, D), and the sums of `HingeResult`."""
    if isinstance(options.margin, Tensor):
        margins = exchange.gather(options.margin.to(batch.captions))
        options = replace(options, margin=margins)
    mined = _mine(batch, options)
    compute = _all if options.mode == "all" else _hardest
    loss, grads, sums = compute(batch, mined, options, exchange)
    if options.reduction == "mean":
        loss, grads = loss / batch.pairs, [grad / batch.pairs for grad in grads]
    # Each row of an image is used once per caption.
    grads[0] = grads[0].view(len(batch.own_images), -1, grads[0].shape[1]).sum(1)
    return loss, grads, sums


def chosen_numbers(mode: str, captions: int) -> int:
    """Return the number of integers that tell the other ranks a rank's choices."""
    return 0 if mode == "all" else 2 * captions


@dataclass(frozen=True)
class _Mined:
    """The hardest negatives of this rank's images, and of its captions; all (b,) pairs.

    ``index`` is into the global batch and -1 where there is none, ``similarity`` 0 there.
    ``violates`` tells which enter the loss, and ``hinge`` is their share of it.
    """

    index: Tensor
    similarity: Tensor
    violates: Tensor
    hinge: Tensor


def _mine(batch: GlobalBatch, options: HingeOptions) -> tuple[_Mined, _Mined]:
    own_ids, positive = batch.ids[batch.own], batch.positive[batch.own]
    limit, margin = options.limit(positive), options.margin
    if isinstance(margin, Tensor):
        margin = margin[batch.own]
    sides = []
    for anchors, others in ((batch.images, batch.captions), (batch.captions, batch.images)):
        own = anchors[batch.own]
        index = hardest_negatives(
            own, others, own_ids, batch.ids, columns=False, query_limit=limit
        ).row_index
        found = index >= 0
        # The same kind of product as the positive's: a tile's last bits would not cancel.
        similarity = (own * others[index.clamp(min=0)]).sum(1).where(found, 0.0)
        hinge = margin + similarity - positive
        # `~(hinge <= 0)` rather than `hinge > 0`: NaN must violate, and show in the loss.
        violates = found & ~(hinge <= 0)
        sides.append(_Mined(index, similarity, violates, hinge.where(violates, 0.0)))
    return sides[0], sides[1]


def _local_sums(batch: GlobalBatch, mined: tuple[_Mined, _Mined], loss: Tensor) -> Tensor:
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
    batch: GlobalBatch, mined: tuple[_Mined, _Mined], options: HingeOptions, exchange: Exchange
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
    grads = [
        _hardest_gradient(batch.images, batch.captions, of_images, of_captions, batch.own),
        _hardest_gradient(batch.captions, batch.images, of_captions, of_images, batch.own),
    ]
    return totals[0], grads, totals[1:]


def _hardest_gradient(
    anchors: Tensor, others: Tensor, anchor_choice: Tensor, other_choice: Tensor, own: slice
) -> Tensor:
    """The formula at the top of this module for the anchors in ``own``, (b, D)."""
    anchor_choice, other_choice = anchor_choice.flatten(), other_choice.flatten()
    mine, partners = anchor_choice[own, None], others[own]
    violates = mine >= 0
    partner_violates = other_choice[own, None] >= 0
    grad = (others[mine[:, 0].clamp(min=0)] - partners) * violates - partners * partner_violates
    # Anchors that did not choose one of mine add to a second half, which is dropped. They are
    # spread over it: a GPU serialises additions to one row.
    count = len(partners)
    slot = other_choice - own.start
    elsewhere = count + torch.arange(len(slot), device=slot.device) % count
    slot = slot.where((slot >= 0) & (slot < count) & (other_choice >= 0), elsewhere)
    return grad + _sum_by_row(others, slot, 2 * count)[:count]


def _sum_by_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Add up ``values`` (B, D) by ``row`` (B,) into (rows, D), always in the same order."""
    total = values.new_zeros(rows, values.shape[1])
    if values.is_cuda:
        # Sorts first; index_add_ would add atomically, in any order.
        return total.index_put_((row,), values, accumulate=True)
    return total.index_add_(0, row, values)


def _all(
    batch: GlobalBatch, mined: tuple[_Mined, _Mined], options: HingeOptions, exchange: Exchange
) -> tuple[Tensor, list[Tensor], Tensor]:
    """As `_hardest`, for every violating negative."""
    own, positive, margin = batch.own, batch.positive, options.margin
    if isinstance(margin, Tensor):
        positive, margin = positive - margin, 0.0
    limit = options.limit(batch.positive)
    own_limit = None if limit is None else limit[own]
    found = [
        all_violations(
            anchors[own],
            others,
            batch.ids[own],
            batch.ids,
            positive[own],
            positive,
            margin,
            query_limit=own_limit,
            candidate_limit=limit,
        )
        for anchors, others in ((batch.images, batch.captions), (batch.captions, batch.images))
    ]
    loss = torch.stack([side.row_loss.sum(dtype=torch.float64) for side in found]).sum()
    # Each violation of an image or of its caption pulls their own similarity up.
    pull = (found[0].row_count + found[1].row_count)[:, None]
    grads = [
        found[0].query_gradient - pull * batch.captions[batch.own],
        found[1].query_gradient - pull * batch.images[batch.own],
    ]
    totals = exchange.gather(_local_sums(batch, mined, loss)[None]).sum(0)
    return totals[0], grads, totals[1:]
