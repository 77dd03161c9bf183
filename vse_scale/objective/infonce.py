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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import nn

from vse_scale.bounds import ON_PURPOSE, Positive
from vse_scale.objective.batch import GlobalBatch
from vse_scale.objective.gathered import Found, GatheredObjective, IgnoreAbove, SizeSettings
from vse_scale.objective.mining import Precision
from vse_scale.objective.softmax import softmax_of
from vse_scale.world.gather import Exchange

_SUMS = 6  # `Softmax.sums`, float64
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
    # Of the embeddings that scores are products of: as given, or in bfloat16.
    score_precision: Precision = "exact"


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
        if self.settings.score_precision == "fast":
            batch = batch.rounded()
        softmax = softmax_of(
            batch,
            scale,
            smoothing=self.settings.label_smoothing,
            ignore_above=self.settings.ignore_above,
        )
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
