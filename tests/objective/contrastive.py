"""CLIP's loss as a part from outside: what the protocol of an objective takes at the least.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
figure 3. Every rank gathers everything and computes the whole loss; its own rows carry the
gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.distributed as dist
from annotated_types import Gt
from torch import Tensor

from vse_scale.objective import Objective, ObjectiveResult
from vse_scale.world.gather import Exchange


@dataclass(frozen=True)
class ContrastiveSettings:
    """One temperature, not learned."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic looks for this very form

    kind: str
    temperature: Annotated[float, Gt(0.0)] = 0.1


@dataclass(frozen=True)
class ContrastiveResult(ObjectiveResult):
    """With the pairs' mean similarity, and a figure that no other objective has."""

    positive: Tensor
    accuracy: Tensor

    @property
    def statistics(self) -> dict[str, float]:
        return {"positive_similarity": float(self.positive), "accuracy": float(self.accuracy)}


class Contrastive(Objective):
    """Cross-entropy of each valid anchor's pair against its negatives, averaged."""

    Settings = ContrastiveSettings
    final_phase = "contrastive"

    def compute(
        self,
        images: Tensor,
        captions: Tensor,
        *,
        ids: Tensor,
        valid: Tensor,
        phase: str,
        group: dist.ProcessGroup | None = None,
    ) -> ContrastiveResult:
        exchange = Exchange(group, images.device)
        all_images = _gathered(images.repeat_interleave(len(ids) // len(images), dim=0), exchange)
        all_captions = _gathered(captions, exchange)
        all_ids = exchange.gather(torch.where(valid, ids, -1))
        scores = all_images @ all_captions.T
        pairs = torch.eye(len(all_ids), dtype=torch.bool)
        columns = (all_ids >= 0) & ((all_ids[:, None] != all_ids) | pairs)
        logits = (scores / self.settings.temperature).masked_fill(~columns, -torch.inf)
        rows = all_ids >= 0
        own = logits.diagonal()[rows]
        loss = (logits.logsumexp(1)[rows] + logits.T.logsumexp(1)[rows] - 2 * own).mean() / 2
        first = (logits.argmax(1) == torch.arange(len(all_ids)))[rows]
        return ContrastiveResult(
            loss=loss,
            exchange=exchange,
            positive=scores.diagonal()[rows].mean().detach(),
            accuracy=first.double().mean(),
        )

    def gathered_bytes(
        self, phase: str, *, images: int, captions: int, embed_dim: int
    ) -> tuple[int, ...]:
        return captions * embed_dim * 4, captions * embed_dim * 4, captions * 8

    def unit(self, pairs: int | str) -> str:
        return f"mean over {pairs} pairs, in nats"

    def collapsed_loss(self, phase: str, pairs: int, captions_per_image: int) -> float:
        return math.log(1 + pairs - captions_per_image)


def _gathered(own: Tensor, exchange: Exchange) -> Tensor:
    """Return the rows of all ranks, of which this rank's have a gradient."""
    whole = exchange.gather(own.detach())
    first = exchange.rank * len(own)
    return torch.cat([whole[:first], own, whole[first + len(own) :]])
