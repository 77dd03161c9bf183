"""The hinge loss of VSE++ and VSE-infinity: the objective, and its definition on one process.

Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018,
equations 4 (all violations) and 6 (the hardest negative). Chen et al. (VSE-infinity, CVPR 2021)
begin with all violations, since the hardest negatives alone can collapse an untrained model, and
ramp the loss in the epoch after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from vse_scale.bounds import ON_PURPOSE
from vse_scale.objective.batch import GlobalBatch
from vse_scale.objective.gathered import Found, GatheredObjective, IgnoreAbove, SizeSettings
from vse_scale.objective.mining import HingeOptions, Mode, Precision, Reduction, check_choices
from vse_scale.objective.negatives import (
    SUMS,
    chosen_numbers,
    hinge_figures,
    hinge_of_batch,
)
from vse_scale.world.gather import Exchange

_LABELS = {
    "all": "all violating negatives (warm-up)",
    "hardest": "hardest negative",
    "semi-hard": "hardest negative below the pair",
}


@dataclass(frozen=True)
class HingeSettings(SizeSettings):
    """Hinge loss with margin, first over all violations, then over the hardest negative."""

    kind: str = "hinge"
    margin: Annotated[float, Gt(0.0), ON_PURPOSE] = 0.2
    reduction: Reduction = "sum"
    # "semi-hard": the most similar negative of those less similar than the pair itself.
    mode: Mode = "hardest"
    warmup_epochs: Annotated[int, Ge(0)] = 1  # epochs with all violations before `mode`
    # Published: in the epoch after the warm-up the loss is scaled by i / n at step i of n.
    ramp: bool = True
    # A negative that beats its pair by more than this is taken for a match that nobody marked.
    ignore_above: IgnoreAbove = None
    # "fast": the hardest negatives are chosen by bfloat16 embeddings, at twice the speed or more on
    # a GPU; the loss and gradient of those chosen stay exact.
    mining_precision: Precision = "exact"

    def __post_init__(self) -> None:
        """Refuse bfloat16 where a negative is compared with its pair's own score."""
        super().__post_init__()
        if self.mining_precision == "fast":
            if self.mode == "semi-hard":
                raise ValueError(_exact_alone('mode is "semi-hard"'))
            if self.ignore_above is not None:
                raise ValueError(_exact_alone(f"ignore_above is {self.ignore_above}"))


def _exact_alone(reason: str) -> str:
    return (
        f'mining_precision is "fast", and {reason}, which compares negatives with the pair\'s own '
        "score; set mining_precision: exact"
    )


class Hinge(GatheredObjective):
    """`global_hinge_loss`, in the phase "all" and then that of its mode."""

    Settings = HingeSettings
    collapse_remedy = (
        "a longer objective.warmup_epochs, a lower optim.lr or more optim.warmup_steps"
    )

    def __init__(self, settings: HingeSettings) -> None:
        super().__init__(settings)
        self.final_phase: Mode = settings.mode

    def of_batch(self, batch: GlobalBatch, phase: str, exchange: Exchange) -> Found:
        """Return the hinge loss; a phase is a mode of `global_hinge_loss`."""
        own = self.settings
        options = HingeOptions(
            own.margin, cast("Mode", phase), own.reduction, own.ignore_above, own.mining_precision
        )
        loss, (images, captions), sums = hinge_of_batch(batch, options, exchange)
        figures = hinge_figures(sums, batch.pairs)
        return Found(loss, images, captions, statistics=figures)

    def numbers(self, phase: str, captions: int) -> tuple[int, ...]:
        """Return those of the sums with the choices."""
        return (chosen_numbers(phase, captions) + SUMS,)

    def phase(self, epoch: int) -> str:
        """All violations during the warm-up, then the mode of the settings."""
        return "all" if epoch < self.settings.warmup_epochs else self.final_phase

    def loss_scale(self, epoch: int, fraction: float) -> float:
        """Rise from 0 to 1 in the epoch after the warm-up; without one there is no ramp."""
        warmup = self.settings.warmup_epochs
        return fraction if self.settings.ramp and 0 < warmup == epoch else 1.0

    def phase_label(self, phase: str) -> str:
        """Name the negatives that count."""
        return _LABELS.get(phase, phase)

    def unit(self, pairs: int | str) -> str:
        """Name the reduction, such as "sum over 128 pairs"."""
        return f"{self.settings.reduction} over {pairs} pairs"

    def collapsed_loss(self, phase: str, pairs: int, captions_per_image: int) -> float | None:
        """The margin for each of 2 B anchors, and in phase "all" for each of its negatives.

        None in phase "semi-hard", for which equal embeddings have no negatives.
        """
        if phase == "semi-hard":
            return None
        collapsed: float = 2 * pairs * self.settings.margin
        if phase == "all":
            collapsed *= max(1, pairs - captions_per_image)
        if self.settings.reduction == "mean":
            collapsed /= pairs
        return collapsed

    @property
    def recipe_keys(self) -> tuple[str, ...]:
        """The settings that published recipes state, and those that are none unless given."""
        given = ("ignore_above", "matryoshka", "matryoshka_weights")
        return ("margin", "mode", "warmup_epochs", *given)


def hinge_loss(
    images: Tensor,
    captions: Tensor,
    *,
    margin: float | Tensor = 0.2,
    mode: Mode = "all",
    reduction: Reduction = "sum",
    ids: Tensor | None = None,
    valid: Tensor | None = None,
    ignore_above: float | None = None,
) -> Tensor:
    """Sum max(0, margin + s(i, c') - s(i, c)) over both directions, s the dot product.

    Args:
        images: (B, D) unit rows, one per caption: repeat an image's where it has several.
        captions: (B, D) unit rows.
        margin: by how much a pair should beat a negative; or (B,), each pair's own.
        mode: "all" sums over every negative, "hardest" over the most similar one of each image
            and of each caption (the one with the lowest index among equals), "semi-hard" over the
            most similar of those below the pair's own similarity (Schroff et al., "FaceNet", CVPR
            2015); an anchor without one adds nothing.
        reduction: "mean" divides the sum by the number of valid pairs.
        ids: (B,) integers; pairs with equal ids are never each other's negatives. None: all differ.
        valid: (B,) bool; what is False is padding and counts neither as a pair nor as a negative.
        ignore_above: what is more similar than a pair by more than this is no negative of it.

    Returns:
        A scalar, differentiable in both embeddings.

    Raises:
        ValueError: shapes disagree, or ``mode`` or ``reduction`` is unknown.
    """
    check_choices(mode, reduction)
    if images.shape != captions.shape or images.dim() != 2:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, captions {tuple(captions.shape)}; "
            "both must be (B, D), one image row per caption"
        )
    if ids is None:
        ids = torch.arange(len(images), device=images.device)
    if valid is None:
        valid = torch.ones_like(ids, dtype=torch.bool)
    scores = images @ captions.T
    positive = scores.diagonal()
    limit = HingeOptions(margin, mode, reduction, ignore_above).limit(positive.detach())
    negative = (ids[:, None] != ids) & valid[:, None] & valid
    margins = margin[:, None] if isinstance(margin, Tensor) else margin
    total = scores.new_zeros(())
    for by_anchor, allowed in ((scores, negative), (scores.T, negative.T)):
        if limit is not None:
            allowed = allowed & ~(by_anchor > limit[:, None])
        violation = F.relu(margins + by_anchor - positive[:, None]).masked_fill(~allowed, 0.0)
        if mode != "all":
            # Chosen by score: the hinge makes equals of all that do not violate.
            hardest = by_anchor.masked_fill(~allowed, -torch.inf).argmax(1, keepdim=True)
            violation = violation.gather(1, hardest)
        total = total + violation.sum()
    return total / valid.sum().clamp(min=1) if reduction == "mean" else total
