"""Objectives over the gathered batch: one gather of embeddings, and what each makes of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
import torch.distributed as dist
from annotated_types import Ge
from torch import Tensor

from vse_kernels.exact import full_precision
from vse_scale.bounds import Count, Positive
from vse_scale.objective.base import Objective, ObjectiveResult
from vse_scale.objective.batch import GlobalBatch, cut
from vse_scale.objective.gradient import with_gradient
from vse_scale.world.gather import Exchange

IgnoreAbove = Annotated[float, Ge(0.0)] | None


@dataclass(frozen=True)
class Found:
    """An objective's answer for a gathered batch.

    Attributes:
        loss: scalar float64, the global loss, the same bits on every rank.
        images: (n, D) its gradient with respect to this rank's images.
        captions: (b, D) and captions.
        learned: its gradient with respect to the learned numbers, the same bits on every rank.
        statistics: scalars for the step's record, by name.
    """

    loss: Tensor
    images: Tensor
    captions: Tensor
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class GatheredResult(ObjectiveResult):
    """A global loss with figures about it.

    Attributes:
        figures: scalars by name.
    """

    figures: Mapping[str, Tensor]

    @property
    def statistics(self) -> dict[str, float]:
        """The figures as numbers."""
        return {name: float(value) for name, value in self.figures.items()}


@dataclass(frozen=True)
class SizeSettings:
    """The sizes at which embeddings should serve when they are cut short.

    Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022: the loss is summed over the
    first d dimensions, of unit length again, for each size d.
    """

    # Settings of numbers that are learned, and from which setting on; a run that goes on has them
    # in its checkpoint.
    learned_if: ClassVar[Mapping[str, str]] = {}

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic looks for this very form

    # Sizes, the largest of them model.embed_dim; none: the embeddings as they are.
    matryoshka: tuple[Count, ...] = ()
    matryoshka_weights: tuple[Positive, ...] | None = None  # of the sizes' losses; None: all 1

    def __post_init__(self) -> None:
        """Refuse another number of weights than of sizes."""
        weights = self.matryoshka_weights
        if weights is not None and len(weights) != len(self.matryoshka):
            raise ValueError(
                f"matryoshka_weights are {len(weights)}, and sizes {len(self.matryoshka)}; give "
                "one weight for each size"
            )

    def weighted_sizes(self) -> list[tuple[int, float]]:
        """Return each size with its weight."""
        weights = self.matryoshka_weights or (1.0,) * len(self.matryoshka)
        return list(zip(self.matryoshka, weights, strict=True))

    @property
    def total_weight(self) -> float:
        """The sum of the sizes' weights; 1 without sizes."""
        return sum(weight for _, weight in self.weighted_sizes()) or 1.0


class GatheredObjective(Objective):
    """An objective that needs one gather of embeddings, and numbers of pairs beyond it.

    A subclass implements `of_batch`.
    """

    @abstractmethod
    def of_batch(self, batch: GlobalBatch, phase: str, exchange: Exchange) -> Found:
        """Return the loss of a gathered batch; called without autograd, autocast or TF32."""

    def compute(
        self,
        images: Tensor,
        captions: Tensor,
        *,
        ids: Tensor,
        valid: Tensor,
        phase: str,
        group: dist.ProcessGroup | None = None,
    ) -> GatheredResult:
        """Gather, and answer for the batch, or for each size of its embeddings.

        Raises:
            ValueError: shapes disagree, or a size is larger than the embeddings.
        """
        exchange = Exchange(group, images.device)
        autocast = torch.autocast(images.device.type, enabled=False)
        with torch.no_grad(), autocast, full_precision():
            batch = GlobalBatch.gather(images, captions, ids, valid, exchange)
            sizes = self.settings.weighted_sizes()
            if sizes:
                found = _sum_of_sizes(self, batch, sizes, phase, exchange)
            else:
                found = self.of_batch(batch, phase, exchange)
        loss = found.loss.to(batch.captions.dtype)
        return GatheredResult(
            loss=with_gradient(loss, (images, captions), (found.images, found.captions)),
            exchange=exchange,
            learned=found.learned,
            figures=found.statistics,
        )

    def gathered_bytes(
        self, phase: str, *, images: int, captions: int, embed_dim: int
    ) -> tuple[int, ...]:
        """Bytes of the embeddings and of the ids, and of `numbers`, once for each size."""
        numbers = self.numbers(phase, captions) * max(1, len(self.settings.matryoshka))
        embeddings = (images + captions) * embed_dim * 4
        return embeddings, captions * 8, *(8 * count for count in numbers)

    def collapsed_at(
        self, phase: str, pairs: int, captions_per_image: int, statistics: Mapping[str, float]
    ) -> float | None:
        """Return the loss of equal embeddings, which are equal at every size."""
        one = self.collapsed_loss(phase, pairs, captions_per_image)
        return None if one is None else one * self.settings.total_weight

    @abstractmethod
    def numbers(self, phase: str, captions: int) -> tuple[int, ...]:
        """Return the numbers of 8 bytes in a rank's part of each gather of `of_batch`."""


def _sum_of_sizes(
    objective: GatheredObjective,
    batch: GlobalBatch,
    sizes: Sequence[tuple[int, float]],
    phase: str,
    exchange: Exchange,
) -> Found:
    """Add up the losses of shorter embeddings; the figures are those of the largest size."""
    width = batch.captions.shape[1]
    parts = []
    for size, weight in sorted(sizes):
        if size > width:
            raise ValueError(f"matryoshka has size {size}, and embeddings have {width}")
        found = objective.of_batch(batch.cut_to(size), phase, exchange)
        images = _through_cut(batch.own_images, size, found.images)
        captions = _through_cut(batch.own_captions, size, found.captions)
        parts.append((weight, replace(found, images=images, captions=captions)))
    return replace(weighted_sum(parts), statistics=parts[-1][1].statistics)


def _through_cut(rows: Tensor, size: int, gradient: Tensor) -> Tensor:
    """Return the gradient (n, D) of ``rows`` from that of ``cut(rows, size)``, (n, size)."""
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        shorter = cut(rows, size)
    return torch.autograd.grad(shorter, rows, gradient.to(shorter.dtype))[0]


def weighted_sum(parts: Sequence[tuple[float, Found]]) -> Found:
    """Return the sum of ``parts`` by their weights; of equal figures the last part's count."""
    learned: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    for weight, part in parts:
        for name, gradient in part.learned.items():
            learned[name] = learned.get(name, 0.0) + weight * gradient
        statistics |= part.statistics
    loss, images, captions = (
        sum((weight * getattr(part, name) for weight, part in parts[1:]),
            parts[0][0] * getattr(parts[0][1], name))
        for name in ("loss", "images", "captions")
    )  # fmt: skip
    return Found(loss, images, captions, learned, statistics)
