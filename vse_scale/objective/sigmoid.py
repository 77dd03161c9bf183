"""The sigmoid loss of SigLIP: every score is a question of its own, pair or not.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. With s_ij the score of image
i with caption j and z_ij = scale s_ij + bias, the loss is, over V valid pairs,

    1 / V  ( sum over i of log(1 + exp(-z_ii))  +  sum over negatives (i, j) of log(1 + exp(z_ij)) )

A score's derivative depends on nothing else, so that ranks share sums for the record alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse_kernels import sigmoid_weights
from vse_scale.bounds import ON_PURPOSE, Positive
from vse_scale.objective.batch import GlobalBatch, limit_of
from vse_scale.objective.gathered import Found, GatheredObjective, IgnoreAbove, SizeSettings
from vse_scale.objective.gradient import Gradient
from vse_scale.objective.mining import Precision
from vse_scale.objective.rectangles import kernels_serve, rectangles
from vse_scale.world.gather import Exchange

_SUMS = 7  # `_Questions.sums`, float64


@dataclass(frozen=True)
class SigmoidSettings(SizeSettings):
    """A logistic regression on every score."""

    learned_if: ClassVar[Mapping[str, str]] = {"scale": "learn_scale", "bias": "learn_bias"}

    kind: str = "sigmoid"
    scale: Annotated[Positive, ON_PURPOSE] = 10.0  # where it is learned, the first
    bias: Annotated[float, ON_PURPOSE] = -10.0
    learn_scale: bool = True
    learn_bias: bool = True
    # A score is left out that beats either of its pairs by more than this: it is taken for a match
    # that nobody marked.
    ignore_above: IgnoreAbove = None
    # Of the embeddings that scores are products of: as given, or in bfloat16.
    score_precision: Precision = "exact"


class Sigmoid(GatheredObjective):
    """The sum over scores, divided by the number of valid pairs."""

    Settings = SigmoidSettings
    final_phase = "sigmoid"

    def __init__(self, settings: SigmoidSettings) -> None:
        super().__init__(settings)
        numbers = {"log_scale": math.log(settings.scale), "bias": settings.bias}
        self._log_scale, self._bias = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in numbers.values()
        )
        if settings.learn_scale:
            self.learned["log_scale"] = self._log_scale
        if settings.learn_bias:
            self.learned["bias"] = self._bias

    def of_batch(self, batch: GlobalBatch, phase: str, exchange: Exchange) -> Found:
        """Return the loss; a rank's own rows and columns give its gradient."""
        scale, bias = self._log_scale.detach().exp(), self._bias.detach()
        if self.settings.score_precision == "fast":
            batch = batch.rounded()
        limit = limit_of(batch.positive, self.settings.ignore_above)
        questions = (_KernelQuestions if kernels_serve(batch, limit) else _Questions)(
            batch, scale, bias, limit
        )
        sums = exchange.gather(questions.sums()[None]).sum(0)
        gradients = {"log_scale": sums[1], "bias": sums[2]}
        return Found(
            loss=sums[0] / batch.pairs,
            images=questions.gradient.images,
            captions=questions.gradient.captions,
            learned={name: gradients[name] for name in self.learned},
            statistics={
                "positive_similarity": sums[3] / batch.pairs,
                "hardest_similarity": sums[4] / sums[5].clamp(min=1),
                "accuracy": sums[6] / (2 * batch.pairs),
                "scale": scale,
                "bias": bias,
            },
        )

    def numbers(self, phase: str, captions: int) -> tuple[int, ...]:
        """Return the sums: nothing is shared for the gradient."""
        return (_SUMS,)

    def unit(self, pairs: int | str) -> str:
        """Name the sum over scores."""
        return f"sum of scores' losses over {pairs} pairs, in nats"

    def collapsed_at(
        self, phase: str, pairs: int, captions_per_image: int, statistics: Mapping[str, float]
    ) -> float | None:
        """All scores are that of the pairs, whichever it is; scale and bias decide the loss."""
        given = (statistics.get(name) for name in ("scale", "bias", "positive_similarity"))
        scale, bias, score = (math.nan if value is None else value for value in given)
        logit = torch.tensor(scale * score + bias, dtype=torch.float64)
        if logit.isnan():
            return None
        one = F.softplus(-logit) + (pairs - captions_per_image) * F.softplus(logit)
        return float(one) * float(self.settings.total_weight)


class _Questions:
    """This rank's rows and columns of the score matrix, and their part of the loss.

    Attributes:
        gradient: with respect to its embeddings.
    """

    def __init__(
        self, batch: GlobalBatch, scale: Tensor, bias: Tensor, limit: Tensor | None
    ) -> None:
        self._batch, self._scale, self._bias, self._limit = batch, scale, bias, limit
        positive = batch.positive[batch.own]
        self._tops = [torch.full_like(positive, -torch.inf) for _ in range(2)]
        self._loss = self._bias_gradient = self._product = torch.zeros(
            (), dtype=torch.float64, device=positive.device
        )
        self.gradient = Gradient(batch)
        each = scale.to(positive.device) / batch.pairs
        self._add_negatives(each)
        logits = positive * scale + bias
        weight = -(-logits).sigmoid().where(batch.own_valid, 0.0)
        self._loss = self._loss - F.logsigmoid(logits).where(batch.own_valid, 0.0).double().sum()
        self._bias_gradient = self._bias_gradient + weight.double().sum()
        self._product = self._product + each * (weight * positive).double().sum()
        self.gradient.add_pairs((weight * each).to(positive.dtype))

    def _add_negatives(self, each: Tensor) -> None:
        """Add the part of the negatives."""
        batch, limit = self._batch, self._limit
        for tile in batch.tiles(of_pairs=True):
            scores = batch.scores(tile, of_pairs=True)
            if limit is not None:
                allowed = torch.minimum(limit[tile.rows, None], limit[tile.columns])
                scores = scores.masked_fill_(scores > allowed, -torch.inf)
            logits = scores.mul(self._scale).add_(self._bias)
            weight = logits.sigmoid()
            if tile.of_images:
                self._keep_top(0, batch.own_part(tile.rows), scores.amax(1))
                self._loss = self._loss - F.logsigmoid(-logits).sum(1).sum(dtype=torch.float64)
                self._bias_gradient = self._bias_gradient + weight.sum(1).sum(dtype=torch.float64)
            if tile.of_captions:
                self._keep_top(1, batch.own_part(tile.columns), scores.amax(0))
            self.gradient.add(tile, weight.mul_(each))

    def sums(self) -> Tensor:
        """Return this rank's share of the sums that `Sigmoid` reports, (7,) float64."""
        batch, valid = self._batch, self._batch.own_valid
        positive = batch.positive[batch.own]
        tops = torch.stack(self._tops)
        there = (tops != -torch.inf) & valid
        parts = (
            self._loss,
            self._scale_gradient(),
            self._bias_gradient / batch.pairs,
            positive.where(valid, 0.0).double(),
            tops.where(there, 0.0).double(),
            there.double(),
            ((positive >= tops) & valid).double(),
        )
        return torch.stack([part.sum() for part in parts])

    def _scale_gradient(self) -> Tensor:
        """Return addends of this rank's part of the derivative by the scale's logarithm."""
        return (self._batch.own_images * self.gradient.images).double()

    def _keep_top(self, side: int, own: slice, found: Tensor) -> None:
        self._tops[side][own] = torch.maximum(self._tops[side][own], found)


class _KernelQuestions(_Questions):
    """The same by the kernel of a GPU, which takes a rectangle of scores at once."""

    def _add_negatives(self, each: Tensor) -> None:
        batch = self._batch
        for part in rectangles(batch):
            found = sigmoid_weights(
                *part.operands,
                self._scale,
                self._bias,
                part.times,
                query_gradient=part.of_images,
                candidate_gradient=part.of_captions,
            )
            self.gradient.add_own(found.query_gradient, found.candidate_gradient, each)
            if part.of_images:
                self._tops[0] = found.row_top.repeat_interleave(batch.per_image)
                self._loss = found.row_loss.sum(dtype=torch.float64)
                self._bias_gradient = found.row_weight.sum(dtype=torch.float64)
                self._product = each * found.row_product.sum(dtype=torch.float64)
            if part.of_captions:
                self._tops[1] = found.column_top

    def _scale_gradient(self) -> Tensor:
        # Of sums in float32: weights in 16 bits made the gradient.
        return self._product
