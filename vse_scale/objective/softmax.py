"""The softmaxes of InfoNCE over the global batch, and their gradient, from scores in tiles.

Each exponential is made in general for its image's sum and for its caption's, and again for the
gradient. Where one number c can be taken from all logits, exp(t s - row) and exp(t s - column) are
exp(t s - c) times a number of the row or of the column: one exponential serves both, and is kept
for the gradient as far as there is room.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vse_kernels import softmax_sums, softmax_weights
from vse_scale.objective.batch import GlobalBatch, Tile, limit_of
from vse_scale.objective.gradient import Gradient
from vse_scale.objective.rectangles import kernels_serve, rectangles
from vse_scale.world.gather import Exchange

_REACH = 60.0  # a float32 holds e^60, summed over any batch, and e^-60 / 2^24
_KEPT_BYTES = 64 << 20  # of exponentials; what is more is made again


def softmax_of(
    batch: GlobalBatch, scale: Tensor, *, smoothing: float, ignore_above: float | None
) -> Softmax:
    """Return the softmaxes of ``scale`` times the scores, by the faster way that is exact."""
    limit = limit_of(batch.positive, ignore_above)
    # The kernels know nothing of smoothed labels.
    if not smoothing and kernels_serve(batch, limit):
        return _KernelSoftmax(batch, scale)
    # Of smoothed labels, and where negatives are ignored, a score's two anchors differ.
    shift = None if smoothing or limit is not None else _shift_of(batch, scale)
    if shift is None:
        return Softmax(batch, scale, smoothing, limit)
    return _SharedSoftmax(batch, scale, shift)


def _shift_of(batch: GlobalBatch, scale: Tensor) -> float | None:
    """Return a number that can be taken from all logits before their exponential; None: none can.

    It is at most 60 below the highest logit that there may be, and at most 60 above the lowest of a
    pair. So no sum overflows, and what underflows is below e^-27 of its anchor's sum, which has its
    pair among the terms.
    """
    if batch.captions.is_cuda:  # to look would wait for the device
        return None
    image, caption = (float(side.norm(dim=1).amax()) for side in (batch.image_rows, batch.captions))
    highest = float(scale) * image * caption
    lowest = float(scale) * float(batch.positive.amin())
    if not highest - lowest <= 2 * _REACH:  # or one of them is not a number
        return None
    return min(highest, max(lowest + _REACH, highest - _REACH))


class _LogSums:
    """The logarithm of a sum of exponentials for each of this rank's anchors, tile by tile.

    Attributes:
        top: (b,) the largest logit of a negative; -inf without one.
        terms: (b,) number of negatives, and ``sum`` of their logits; where they are counted.
    """

    def __init__(self, batch: GlobalBatch, *, counted: bool) -> None:
        like = batch.positive[batch.own]
        self.top = torch.full_like(like, -torch.inf)
        self.terms, self.sum, self._total = (torch.zeros_like(like) for _ in range(3))
        self._counted = counted
        self._shift: float | None = None

    def add(self, own: slice, logits: Tensor, dim: int) -> None:
        """Add logits of the anchors ``own`` with others along ``dim``; -inf is none."""
        top = torch.maximum(self.top[own], logits.amax(dim))
        shift = _finite(top)
        grown = (logits - shift.unsqueeze(dim)).exp_().sum(dim)
        self._total[own] = self._total[own] * (self.top[own] - shift).exp() + grown
        self.top[own] = top
        if self._counted:
            there = logits != -torch.inf
            self.terms[own] += there.sum(dim)
            self.sum[own] += logits.where(there, 0.0).sum(dim)

    def add_top(self, own: slice, top: Tensor) -> None:
        """Take in the largest of some logits."""
        self.top[own] = torch.maximum(self.top[own], top)

    def add_total(self, own: slice, total: Tensor, shift: float) -> None:
        """Add the sums of exp(logit - shift), of one shift for all."""
        self._total[own] += total
        self._shift = shift

    def put(self, top: Tensor, total: Tensor) -> None:
        """Take the largest of all logits, and the sum of their exponentials less that."""
        self.top, self._total = top, total

    def value(self, own_logits: Tensor) -> Tensor:
        """Return the logarithms (b,) float64 with the anchors' own pairs among the terms."""
        shift = _finite(self.top).double() if self._shift is None else self._shift
        return torch.logaddexp(shift + self._total.double().log(), own_logits.double())


def _finite(top: Tensor) -> Tensor:
    """Return ``top`` with 0 in place of -inf, which would give NaN when subtracted from itself."""
    return top.where(top != -torch.inf, 0.0)


class Softmax:
    """The softmaxes of both directions; ``log_sums`` (2, B) float64 once they are shared.

    Attributes:
        log_sums: of the images' rows and of the captions' columns.
        terms: (2, B) the numbers of what they are over; where labels are smoothed.
    """

    def __init__(
        self, batch: GlobalBatch, scale: Tensor, smoothing: float = 0.0, limit: Tensor | None = None
    ) -> None:
        self._batch, self._scale, self._smoothing, self._limit = batch, scale, smoothing, limit
        self._rows, self._columns = (_LogSums(batch, counted=smoothing > 0) for _ in range(2))
        self._sum_up()

    def share(self, exchange: Exchange) -> None:
        """Gather the logarithms of the sums, (2, B), and the terms."""
        own = self._own_logits()
        sides = (self._rows, self._columns)
        numbers = [side.value(own) for side in sides]
        if self._smoothing:
            numbers += [side.terms.double() + 1 for side in sides]
        gathered = exchange.gather(torch.stack(numbers)[None]).transpose(0, 1).flatten(1)
        self.log_sums, self.terms = gathered[:2], gathered[2:]

    def gradient(self) -> Gradient:
        """Return the loss's gradient with respect to this rank's embeddings."""
        batch, gradient = self._batch, Gradient(self._batch)
        each = self._each()
        self._add_negatives(gradient, each)
        gradient.add_pairs((self._pair_weight() * each).to(batch.captions.dtype))
        return gradient

    def sums(self, gradient: Gradient) -> Tensor:
        """Return this rank's share of the sums that `InfoNce` reports, (6,) float64."""
        batch, valid = self._batch, self._batch.own_valid
        own = self._own_logits()
        loss = (self.log_sums[:, batch.own] - own).sum(0)
        if self._smoothing:
            for side, terms in zip((self._rows, self._columns), self.terms, strict=True):
                mean = (side.sum.double() + own) / terms[batch.own]
                loss += self._smoothing * (own - mean)
        tops = torch.stack([self._rows.top, self._columns.top])
        there = (tops != -torch.inf) & valid
        parts = (
            loss.where(valid, 0.0),
            self._scale_gradient(gradient),
            batch.positive[batch.own].where(valid, 0.0).double(),
            (tops / self._scale).where(there, 0.0).double(),
            there.double(),
            ((own >= tops) & valid).double(),
        )
        return torch.stack([part.sum() for part in parts])

    def _each(self) -> Tensor:
        """Return the derivative of the loss by a score whose weight is 1."""
        return self._scale.to(self._batch.captions.device) / (2 * self._batch.pairs)

    def _pair_weight(self) -> Tensor:
        """Return the weights (b,) float64 of this rank's pairs."""
        batch = self._batch
        own = self._own_logits().double()
        weight = (own - self.log_sums[:, batch.own]).exp().sum(0) - 2 * (1 - self._smoothing)
        if self._smoothing:
            weight -= (self._smoothing / self.terms[:, batch.own]).sum(0)
        return weight.where(batch.own_valid, 0.0)

    def _scale_gradient(self, gradient: Gradient) -> Tensor:
        """Return addends of this rank's part of the derivative by the scale's logarithm."""
        # The loss depends on scale times score alone.
        return (self._batch.own_images * gradient.images).double()

    def _own_logits(self) -> Tensor:
        return self._batch.positive[self._batch.own] * self._scale

    def _sum_up(self) -> None:
        """Fill the sums of this rank's anchors."""
        batch = self._batch
        for tile in batch.tiles(of_pairs=True):
            rows, columns = self._logits(tile)
            if tile.of_images:
                self._rows.add(batch.own_part(tile.rows), rows, 1)
            if tile.of_captions:
                self._columns.add(batch.own_part(tile.columns), columns, 0)

    def _add_negatives(self, gradient: Gradient, each: Tensor) -> None:
        """Add the part of the negatives."""
        for tile, weight in self._weights(each):
            gradient.add(tile, weight)

    def _weights(self, each: Tensor) -> Iterator[tuple[Tile, Tensor]]:
        """Yield tiles with the derivatives of their scores, ``each`` times the softmaxes."""
        row_sums, column_sums = self.log_sums.to(self._batch.captions.dtype)
        shares = (self._smoothing / self.terms).to(row_sums)  # none without smoothing
        for tile in self._batch.tiles(of_pairs=True):
            rows, columns = self._logits(tile)
            weight = (rows - row_sums[tile.rows, None]).exp_()
            weight += (columns - column_sums[tile.columns]).exp_()
            if self._smoothing:
                weight -= (rows != -torch.inf) * shares[0][tile.rows, None]
                weight -= (columns != -torch.inf) * shares[1][tile.columns]
            yield tile, weight.mul_(each)

    def _logits(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return a tile's logits by its images' negatives and by its captions', which may be one.

        They differ where negatives are ignored, by the similarity of the one pair or the other.
        """
        scores = self._batch.scores(tile, of_pairs=True)
        if self._limit is None:
            logits = scores.mul_(self._scale)
            return logits, logits
        above = scores > self._limit[tile.rows, None], scores > self._limit[tile.columns]
        scores.mul_(self._scale)
        return scores.masked_fill(above[0], -torch.inf), scores.masked_fill(above[1], -torch.inf)


class _SharedSoftmax(Softmax):
    """The same by one exponential of an image and a caption, less the shift of `_shift_of`."""

    def __init__(self, batch: GlobalBatch, scale: Tensor, shift: float) -> None:
        self._shift = shift
        self._kept: list[Tensor | None] = []
        super().__init__(batch, scale)

    def _sum_up(self) -> None:
        batch, each, room = self._batch, self._batch.per_image, _KEPT_BYTES
        # An image counts as often as it has captions that are no padding.
        self._served = _by_images(batch, batch.ids >= 0).to(batch.captions.dtype)
        for tile in batch.tiles(of_pairs=False):
            rows, columns = batch.own_part(tile.rows), batch.own_part(tile.columns)
            logits = batch.scores(tile, of_pairs=False, scale=self._scale)
            if tile.of_images:
                self._rows.add_top(rows, logits.amax(1).repeat_interleave(each))
            if tile.of_captions:
                self._columns.add_top(columns, logits.amax(0))
            exponentials = logits.sub_(self._shift).exp_()
            if tile.of_images:
                total = exponentials.sum(1).repeat_interleave(each)
                self._rows.add_total(rows, total, self._shift)
            if tile.of_captions:
                served = self._served[batch.rows_of(tile.rows)]
                total = exponentials.sum(0) if each == 1 else served @ exponentials
                self._columns.add_total(columns, total, self._shift)
            kept = exponentials if exponentials.nbytes <= room else None
            room -= 0 if kept is None else kept.nbytes
            self._kept.append(kept)

    def _weights(self, each: Tensor) -> Iterator[tuple[Tile, Tensor]]:
        batch = self._batch
        of_rows, of_columns = (self._shift - self.log_sums).exp() * each
        of_images = _by_images(batch, of_rows.where(batch.ids >= 0, 0.0)).to(self._served)
        of_columns = of_columns.to(self._served)
        for tile, kept in zip(batch.tiles(of_pairs=False), self._kept, strict=True):
            rows, weight = batch.rows_of(tile.rows), of_columns[tile.columns]
            if batch.per_image > 1:
                weight = self._served[rows, None] * weight
            if kept is None:
                logits = batch.scores(tile, of_pairs=False, scale=self._scale)
                kept = logits.sub_(self._shift).exp_()
            yield tile, (of_images[rows, None] + weight).mul_(kept)


class _KernelSoftmax(Softmax):
    """The same by the kernels of a GPU, which take a rectangle of scores at once."""

    def _sum_up(self) -> None:
        scale, each = self._scale, self._batch.per_image
        for part in rectangles(self._batch):
            found = softmax_sums(*part.operands, scale, part.times)
            if part.of_images:
                sides = (found.row_top * scale, found.row_sum)
                self._rows.put(*(side.repeat_interleave(each) for side in sides))
            if part.of_captions:
                self._columns.put(found.column_top * scale, found.column_sum)

    def _add_negatives(self, gradient: Gradient, each: Tensor) -> None:
        batch = self._batch
        of_rows, of_columns = (-self.log_sums).where(batch.ids >= 0, -torch.inf)
        of_images = of_rows.view(len(batch.image_rows), -1).logsumexp(1)
        for part in rectangles(batch):
            found = softmax_weights(
                *part.operands,
                self._scale,
                of_images[part.image_rows],
                of_columns[part.pairs],
                part.times,
                query_gradient=part.of_images,
                candidate_gradient=part.of_captions,
            )
            gradient.add_own(found.query_gradient, found.candidate_gradient, each)
            if part.of_images:
                self._product = each * found.row_product.double().sum()

    def _scale_gradient(self, gradient: Gradient) -> Tensor:
        # Of sums in float32: weights in 16 bits made the gradient.
        pairs = self._pair_weight() * self._batch.positive[self._batch.own].double()
        return self._product + self._each() * pairs.sum()


def _by_images(batch: GlobalBatch, values: Tensor) -> Tensor:
    """Return the sums (N,) of ``values`` (B,) over each image's captions."""
    return values.view(len(batch.image_rows), -1).sum(1)
