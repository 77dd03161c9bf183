"""InfoNCE, the loss of CLIP: a softmax over the global batch, both ways.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
With s_ij the score of image i with caption j, t the inverse temperature and V the valid pairs, the
loss is

    1 / 2V  sum over i of  log sum_j exp(t s_ij) - t s_ii  +  log sum_j exp(t s_ji) - t s_ii

where j is i itself or a negative of it. So each rank needs the logarithms of all the sums for the
gradient of its own embeddings, and nothing else of the others:

    dL/dx_i = t / 2V  sum over j of (exp(t s_ij - row_i) + exp(t s_ij - column_j)) y_j  -  t/V y_i
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from vse_scale.bounds import ON_PURPOSE, Positive
from vse_scale.objective.batch import GlobalBatch, Gradient, Sweep, Tile, limit_of
from vse_scale.objective.gathered import Found, GatheredObjective, IgnoreAbove, SizeSettings
from vse_scale.world.gather import Exchange

_SUMS = 6  # `_Softmax.sums`, float64
_COLDEST = 0.01  # as CLIP has it: scores are multiplied by 100 at most


@dataclass(frozen=True)
class InfoNceSettings(SizeSettings):
    """A softmax over each anchor's pair and its negatives."""

    learned_if: ClassVar[Mapping[str, str]] = {"temperature": "learn_temperature"}

    kind: str = "infonce"
    temperature: Annotated[Positive, ON_PURPOSE] = 0.07  # where it is learned, the first
    learn_temperature: bool = True
    # A learned temperature stops there; null: at 0.01, or at a first one below that.
    min_temperature: Annotated[Positive | None, ON_PURPOSE] = None
    # The share of an anchor's target that is spread over all that it is compared with.
    label_smoothing: Annotated[float, Ge(0.0), Lt(1.0), ON_PURPOSE] = 0.0
    # A negative that beats its pair by more than this is taken for a match that nobody marked.
    ignore_above: IgnoreAbove = None


class InfoNce(GatheredObjective):
    """The mean over valid pairs of the cross-entropies of both directions, halved."""

    Settings = InfoNceSettings
    final_phase = "infonce"

    def __init__(self, settings: InfoNceSettings) -> None:
        super().__init__(settings)
        first = torch.tensor(-math.log(settings.temperature), dtype=torch.float64)
        self._log_scale = nn.Parameter(first, requires_grad=settings.learn_temperature)
        if settings.learn_temperature:
            self.learned["log_scale"] = self._log_scale

    def of_batch(self, batch: GlobalBatch, phase: str, exchange: Exchange) -> Found:
        """Take the logarithms of the sums, share them, and take the gradient with all of them."""
        scale = self._log_scale.detach().exp()
        softmax = _Softmax(batch, scale, self.settings)
        softmax.share(exchange)
        gradient = softmax.gradient()
        sums = exchange.gather(softmax.sums(gradient)[None]).sum(0)
        anchors = 2 * batch.pairs
        return Found(
            loss=sums[0] / anchors,
            images=gradient.images,
            captions=gradient.captions,
            learned={"log_scale": sums[1]} if self.learned else {},
            statistics={
                "positive_similarity": sums[2] / batch.pairs,
                "hardest_similarity": sums[3] / sums[4].clamp(min=1),
                "accuracy": sums[5] / anchors,
                "temperature": 1 / scale,
            },
        )

    def numbers(self, phase: str, captions: int) -> tuple[int, ...]:
        """Return the logarithms of both directions, with smoothing their terms, and the sums."""
        return (4 if self.settings.label_smoothing else 2) * captions, _SUMS

    def bound_learned(self) -> None:
        """Keep the temperature from falling below the coldest."""
        coldest = self.settings.min_temperature or min(_COLDEST, self.settings.temperature)
        with torch.no_grad():
            self._log_scale.clamp_(max=-math.log(coldest))

    def unit(self, pairs: int | str) -> str:
        """Name the mean, and the unit of the logarithm."""
        return f"mean over {pairs} pairs, in nats"

    def collapsed_loss(self, phase: str, pairs: int, captions_per_image: int) -> float:
        """An anchor's pair and its negatives are equally likely."""
        return math.log(1 + pairs - captions_per_image)


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

    def value(self, own_logits: Tensor) -> Tensor:
        """Return the logarithms (b,) float64 with the anchors' own pairs among the terms."""
        negatives = _finite(self.top).double() + self._total.double().log()
        return torch.logaddexp(negatives, own_logits.double())


def _finite(top: Tensor) -> Tensor:
    """Return ``top`` with 0 in place of -inf, which would give NaN when subtracted from itself."""
    return top.where(top != -torch.inf, 0.0)


class _Softmax:
    """The softmaxes of both directions; ``log_sums`` (2, B) float64 once they are shared.

    Attributes:
        log_sums: of the images' rows and of the captions' columns.
        terms: (2, B) the numbers of what they are over; where labels are smoothed.
    """

    def __init__(self, batch: GlobalBatch, scale: Tensor, settings: InfoNceSettings) -> None:
        self._batch, self._scale = batch, scale
        self._smoothing = settings.label_smoothing
        self._limit = limit_of(batch.positive, settings.ignore_above)
        counted = self._smoothing > 0
        self._rows, self._columns = (_LogSums(batch, counted=counted) for _ in range(2))
        for sweep, tile in self._tiles():
            rows, columns = self._logits(tile)
            if sweep.of_images:
                self._rows.add(batch.own_part(tile.rows), rows, 1)
            if sweep.of_captions:
                self._columns.add(batch.own_part(tile.columns), columns, 0)

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
        each = self._scale.to(batch.captions.device) / (2 * batch.pairs)
        row_sums, column_sums = self.log_sums.to(batch.captions.dtype)
        shares = (self._smoothing / self.terms).to(batch.captions.dtype)  # none without smoothing
        for sweep, tile in self._tiles():
            rows, columns = self._logits(tile)
            weight = (rows - row_sums[tile.rows, None]).exp_()
            weight += (columns - column_sums[tile.columns]).exp_()
            if self._smoothing:
                weight -= (rows != -torch.inf) * shares[0][tile.rows, None]
                weight -= (columns != -torch.inf) * shares[1][tile.columns]
            gradient.add(sweep, tile, weight.mul_(each))
        own = self._own_logits().double()
        weight = (own - self.log_sums[:, batch.own]).exp().sum(0) - 2 * (1 - self._smoothing)
        if self._smoothing:
            weight -= (self._smoothing / self.terms[:, batch.own]).sum(0)
        gradient.add_pairs((weight * each).where(batch.own_valid, 0.0).to(batch.captions.dtype))
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
            # The loss depends on scale times score alone.
            (batch.own_images * gradient.images).double(),
            batch.positive[batch.own].where(valid, 0.0).double(),
            (tops / self._scale).where(there, 0.0).double(),
            there.double(),
            ((own >= tops) & valid).double(),
        )
        return torch.stack([part.sum() for part in parts])

    def _own_logits(self) -> Tensor:
        return self._batch.positive[self._batch.own] * self._scale

    def _tiles(self) -> Iterator[tuple[Sweep, Tile]]:
        for sweep in self._batch.sweeps():
            for tile in self._batch.tiles(sweep):
                yield sweep, tile

    def _logits(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return a tile's logits by its images' negatives and by its captions', which may be one.

        They differ where negatives are ignored, by the similarity of the one pair or the other.
        """
        scores = tile.scores
        if self._limit is None:
            logits = scores.mul_(self._scale)
            return logits, logits
        above = scores > self._limit[tile.rows, None], scores > self._limit[tile.columns]
        scores.mul_(self._scale)
        return scores.masked_fill(above[0], -torch.inf), scores.masked_fill(above[1], -torch.inf)
