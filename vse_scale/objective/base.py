"""The protocol of an objective: what training, planning, reports and model cards ask of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vse_scale.objective.batch import captions_per_image
from vse_scale.objective.gradient import with_gradient
from vse_scale.world.gather import Exchange


@dataclass(frozen=True)
class ObjectiveResult:
    """A global loss and its cost. Reading a number waits for the device.

    Attributes:
        loss: scalar, the global loss on every rank; its backward gives this rank's embeddings
            their gradient of the global loss (not divided by the number of ranks), and nothing
            to `Objective.learned`.
        exchange: the all-gathers that it took.
        learned: gradient of the global loss with respect to each of `Objective.learned`, the same
            bits on every rank.
    """

    loss: Tensor
    exchange: Exchange
    learned: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)

    @property
    def statistics(self) -> dict[str, float]:
        """Figures for the step's record, by the name that metrics.jsonl gives them.

        Prometheus, TensorBoard and reports show ``violating``, ``positive_similarity`` and
        ``hardest_similarity``; an objective without one of them leaves it out.
        """
        return {}

    @property
    def communication_seconds(self) -> float:
        """Seconds spent in collectives, the wait for slower ranks included."""
        return self.exchange.seconds()

    @property
    def bytes_sent(self) -> int:
        """Bytes that left this rank for the others."""
        return self.exchange.bytes_sent

    def detached(self) -> Self:
        """Return the same with a loss that holds no graph."""
        return replace(self, loss=self.loss.detach())


class Objective(ABC):
    """A loss of the whole global batch, with its schedule, its costs and its labels.

    A subclass names its ``Settings`` and implements `compute` and `gathered_bytes`; the other
    methods have defaults for a loss that stays the same all through training. Settings, a batch, a
    phase and the ``learned`` numbers determine the loss.

    Attributes:
        Settings: a frozen dataclass of the keys of the configuration's section ``objective:``,
            with their defaults, and ``kind: str``; bounds are ``annotated_types`` markers.
        settings: this objective's.
        learned: numbers that are trained with the model, such as a temperature: scalars, float64
            on the CPU, equal on all ranks. They decay not, and checkpoints keep them.
        final_phase: name of the phase that training ends in.
        collapse_remedy: settings that prevent a collapse, in words for a warning.
    """

    Settings: ClassVar[type[Any]]
    final_phase: str = "training"
    collapse_remedy: str = "a lower optim.lr or more optim.warmup_steps"

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.learned: dict[str, nn.Parameter] = {}

    @abstractmethod
    def compute(
        self,
        images: Tensor,
        captions: Tensor,
        *,
        ids: Tensor,
        valid: Tensor,
        phase: str,
        group: dist.ProcessGroup | None = None,
    ) -> ObjectiveResult:
        """Return the loss of the batches of all ranks together.

        Args:
            images: (n, D) this rank's unit rows; n and b are the same on every rank.
            captions: (b, D) unit rows, b / n of each image, which are neighbours.
            ids: (b,) int64, not negative: an image's id for each of its captions.
            valid: (b,) bool; False marks padding.
            phase: as `phase` names it.
            group: the ranks; None means all. Without torch.distributed there is one rank.
        """

    @abstractmethod
    def gathered_bytes(
        self, phase: str, *, images: int, captions: int, embed_dim: int
    ) -> tuple[int, ...]:
        """Return the bytes of this rank's part of each all-gather of `compute`.

        On N ranks `ObjectiveResult.bytes_sent` is N - 1 times their sum, for float32 embeddings.

        Args:
            phase: as `phase` names it.
            images: n, of this rank.
            captions: b, of this rank.
            embed_dim: D.
        """

    def loss(
        self,
        images: Tensor,
        captions: Tensor,
        ids: Tensor | None = None,
        valid: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Return the scalar global loss of the final phase, with its gradient.

        Every rank of ``group`` calls it with as many rows, and gets the same value. Its backward
        gives this rank's images and captions the exact gradient of that *global* loss, not divided
        by the number of ranks: a wrapper that averages gradients over ranks, as
        DistributedDataParallel does, is to be given the loss times that number.

        Args:
            images: (n, D) this rank's unit rows.
            captions: (n k, D) unit rows, the k captions of an image side by side.
            ids: (n k,) or (n,) int64, not negative, one for all captions of an image: pairs of
                equal ids are never each other's negatives. None: all images differ.
            valid: (n k,) or (n,) bool; False marks padding. None: there is none.
            group: the ranks; None means all.

        Raises:
            ValueError: shapes disagree, or captions of one image have several ids.
        """
        per_image = captions_per_image(images, captions)
        if ids is None:
            first = Exchange(group, images.device).rank * len(images)
            ids = torch.arange(first, first + len(images), device=images.device)
        if valid is None:
            valid = torch.ones(len(captions), dtype=torch.bool, device=images.device)
        ids, valid = (_of_pairs(values, len(images), per_image) for values in (ids, valid))
        if not bool((ids.view(-1, per_image) == ids[::per_image, None]).all()):
            raise ValueError("ids differ among the captions of an image; give one for each image")
        found = self.compute(
            images, captions, ids=ids, valid=valid, phase=self.final_phase, group=group
        )
        learned = [found.learned[name] for name in self.learned]
        return with_gradient(found.loss, [*self.learned.values()], learned)

    def bound_learned(self) -> None:  # noqa: B027  # most have none
        """Bring the ``learned`` numbers back within their bounds, after each update."""

    def phase(self, epoch: int) -> str:
        """Return the name of an epoch's phase, for metrics.jsonl; epochs count from 0."""
        return self.final_phase

    def loss_scale(self, epoch: int, fraction: float) -> float:
        """Return the factor on the gradient after ``fraction`` of an epoch, 0 to 1."""
        return 1.0

    def phase_label(self, phase: str) -> str:
        """Return a phase's name in words."""
        return phase

    def unit(self, pairs: int | str) -> str:
        """Return the loss's unit in words, for the axis of a chart; ``pairs`` make a batch."""
        return f"over {pairs} pairs"

    def collapsed_loss(self, phase: str, pairs: int, captions_per_image: int) -> float | None:
        """Return the loss of a batch whose embeddings are all equal; None: this is not watched.

        Args:
            phase: as `phase` names it.
            pairs: of the global batch.
            captions_per_image: pairs that an image serves.
        """
        return None

    def collapsed_at(
        self, phase: str, pairs: int, captions_per_image: int, statistics: Mapping[str, float]
    ) -> float | None:
        """Return `collapsed_loss` where it depends on figures of the step, `statistics`."""
        return self.collapsed_loss(phase, pairs, captions_per_image)

    @property
    def recipe_keys(self) -> tuple[str, ...]:
        """The settings that a model card lists."""
        return tuple(field.name for field in fields(self.Settings))


def _of_pairs(values: Tensor, images: int, per_image: int) -> Tensor:
    """Return ``values`` (n,) or (n k,) as (n k,)."""
    captions = images * per_image
    if values.shape == (captions,):
        return values
    if values.shape == (images,):
        return values.repeat_interleave(per_image)
    raise ValueError(
        f"ids or valid have shape {tuple(values.shape)}; give one for each of {captions} "
        f"captions, or of {images} images"
    )
