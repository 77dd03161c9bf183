"""Watches for collapse: all images are one embedding, and all captions are one.

The two need not be the same (fartashf/vsepp#27): every similarity is the same then, 1 or less, a
pair scores as its hardest negative does, and the loss has no gradient that parts them. Its value
there is known to the objective.
"""

from __future__ import annotations

import math
from pathlib import Path

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.objective.registry import objective_of
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord

_SIMILARITIES = ("positive_similarity", "hardest_similarity")
_NEAR = 0.02  # of 1, for the loss's ratio
_APART = 0.01  # of a pair's similarity from its hardest negative's
_VIOLATING = 0.999  # share of anchors; while embeddings are spread, some pairs keep the margin
_STEPS = 100  # in a row; an untrained model begins in one spot and leaves it


class Collapse:
    """The loss that a run would have if its embeddings were all in one spot."""

    def __init__(self, config: Config) -> None:
        self._batch = config.data.global_batch
        self._captions_per_image = config.data.captions_per_image
        self._objective = objective_of(config.objective)

    @property
    def remedy(self) -> str:
        """Settings that prevent a collapse, in words."""
        return self._objective.collapse_remedy

    def ratio(self, record: StepRecord) -> float | None:
        """Return a step's loss over that of equal embeddings; None: the objective has none."""
        collapsed = self._objective.collapsed_at(
            record.objective, self._batch, self._captions_per_image, record.statistics
        )
        return None if collapsed is None else record.loss / collapsed


class CollapseWatch:
    """The observer that warns once the embeddings have stayed in one spot for a while."""

    def __init__(
        self, config: Config, folder: RunFolder, *, next_step: int, total_steps: int
    ) -> None:
        """Start to count."""
        self._collapse = Collapse(config)
        self._steps = 0

    def step(self, record: StepRecord) -> None:
        """Count a step near collapse, and warn of the last of so many in a row."""
        ratio = self._collapse.ratio(record)
        positive, hardest = (record.statistics.get(name, math.nan) for name in _SIMILARITIES)
        if ratio is None:
            return
        # Comparisons that NaN fails: NaN is not near.
        near = abs(ratio - 1) < _NEAR and abs(positive - hardest) < _APART
        near = near and record.statistics.get("violating", 1.0) >= _VIOLATING
        self._steps = self._steps + 1 if near else 0
        if self._steps == _STEPS:
            log.warning(
                "step %d: the embeddings have collapsed: for %d steps the loss has been %.2f times "
                "that of equal embeddings, and pairs (similarity %.3f) have scored as their "
                "hardest negatives (%.3f). Start anew with %s",
                record.step, _STEPS, ratio, positive, hardest, self._collapse.remedy,
            )  # fmt: skip

    def evaluation(self, record: EvaluationRecord) -> None:
        """Pass over a validation: a collapse shows in the steps."""

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Pass over a checkpoint."""

    def close(self) -> None:
        """Stop: nothing is open."""
