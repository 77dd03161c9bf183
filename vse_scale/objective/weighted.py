"""The hinge and InfoNCE together, each with a weight, over one gather of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from vse_scale.bounds import ON_PURPOSE
from vse_scale.objective.batch import GlobalBatch
from vse_scale.objective.gathered import Found, GatheredObjective, SizeSettings, weighted_sum
from vse_scale.objective.hinge import Hinge, HingeSettings
from vse_scale.objective.infonce import InfoNce, InfoNceSettings
from vse_scale.objective.mining import Reduction
from vse_scale.world.gather import Exchange

_Weight = Annotated[float, Ge(0.0), ON_PURPOSE]


@dataclass(frozen=True)
class MeanHingeSettings(HingeSettings):
    """The hinge's, whose reduction is another beside a mean."""

    # Summed over the batch, as it is on its own, the hinge would outweigh a mean.
    reduction: Reduction = "mean"


@dataclass(frozen=True)
class WeightedSettings(SizeSettings):
    """Settings of both, and their weights."""

    kind: str = "hinge+infonce"
    hinge_weight: _Weight = 1.0
    infonce_weight: _Weight = 1.0
    hinge: MeanHingeSettings = field(default_factory=MeanHingeSettings)
    infonce: InfoNceSettings = field(default_factory=InfoNceSettings)

    def __post_init__(self) -> None:
        """Refuse sizes that only one of the two would have, other parts, and weights of 0."""
        super().__post_init__()
        for key, section in (("hinge", self.hinge), ("infonce", self.infonce)):
            if section.kind != key:
                raise ValueError(
                    f"objective.{key}.kind is {section.kind!r:.80}, and that section is always of "
                    f"{key}; take it out"
                )
        if not self.hinge_weight and not self.infonce_weight:
            raise ValueError(
                "objective.hinge_weight and objective.infonce_weight are both 0, so that nothing "
                "is learnt; set one above 0"
            )
        if self.hinge.matryoshka or self.infonce.matryoshka:
            raise ValueError("The sizes are of both: set objective.matryoshka")


class Weighted(GatheredObjective):
    """The weighted sum of `Hinge`, with its phases, and `InfoNce`."""

    Settings = WeightedSettings
    collapse_remedy = Hinge.collapse_remedy.replace("objective.", "objective.hinge.")

    def __init__(self, settings: WeightedSettings) -> None:
        super().__init__(settings)
        self._hinge, self._infonce = Hinge(settings.hinge), InfoNce(settings.infonce)
        self.learned = self._infonce.learned
        self.final_phase = self._named(self._hinge.final_phase)

    def of_batch(self, batch: GlobalBatch, phase: str, exchange: Exchange) -> Found:
        """Add up what both make of the same batch."""
        hinge = self._hinge.of_batch(batch, _of_hinge(phase), exchange)
        infonce = self._infonce.of_batch(batch, self._infonce.final_phase, exchange)
        found = weighted_sum(
            [(self.settings.infonce_weight, infonce), (self.settings.hinge_weight, hinge)]
        )
        losses = {"hinge_loss": hinge.loss, "infonce_loss": infonce.loss}
        found.statistics.update(losses)
        return found

    def numbers(self, phase: str, captions: int) -> tuple[int, ...]:
        """Return the hinge's, and then InfoNCE's."""
        return (
            *self._hinge.numbers(_of_hinge(phase), captions),
            *self._infonce.numbers(self._infonce.final_phase, captions),
        )

    def bound_learned(self) -> None:
        """Bound the temperature."""
        self._infonce.bound_learned()

    def phase(self, epoch: int) -> str:
        """Name the hinge's phase beside InfoNCE's."""
        return self._named(self._hinge.phase(epoch))

    def loss_scale(self, epoch: int, fraction: float) -> float:
        """Scale both as the hinge is scaled."""
        return self._hinge.loss_scale(epoch, fraction)

    def phase_label(self, phase: str) -> str:
        """Name the negatives of the hinge."""
        return f"{self._hinge.phase_label(_of_hinge(phase))}, and InfoNCE"

    def collapsed_at(
        self, phase: str, pairs: int, captions_per_image: int, statistics: Mapping[str, float]
    ) -> float | None:
        """Add up those of both."""
        own = self.settings
        hinge = self._hinge.collapsed_loss(_of_hinge(phase), pairs, captions_per_image)
        infonce = self._infonce.collapsed_loss(phase, pairs, captions_per_image)
        if hinge is None:
            return None
        both = own.hinge_weight * hinge + own.infonce_weight * infonce
        return float(both * own.total_weight)

    @property
    def recipe_keys(self) -> tuple[str, ...]:
        """The weights, and the settings of both."""
        own = ("kind", "hinge_weight", "infonce_weight", "matryoshka", "matryoshka_weights")
        hinge = (f"hinge.{key}" for key in self._hinge.recipe_keys)
        infonce = (f"infonce.{key}" for key in self._infonce.recipe_keys if key != "kind")
        return (*own, *hinge, *infonce)

    def _named(self, phase: str) -> str:
        return f"{phase}+{self._infonce.final_phase}"


def _of_hinge(phase: str) -> str:
    return phase.partition("+")[0]
