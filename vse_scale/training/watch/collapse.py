"""Watches for collapse: all embeddings in one spot, where the hardest negative leads nowhere.

There every similarity is 1 and every hinge is the margin. Faghri et al. (VSE++, BMVC 2018) and
Chen et al. (CVPR 2021) start with all violations because the hardest ones alone can lead into it.
"""

from __future__ import annotations

from pathlib import Path

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord

_NEAR = 0.05  # of 1, for the loss's ratio and for both similarities
_STEPS = 100  # in a row; an untrained model begins in one spot and leaves it


class Collapse:
    """The loss that a run would have if its embeddings were all in one spot."""

    def __init__(self, config: Config) -> None:
        self._batch = config.data.global_batch
        self._captions_per_image = config.data.captions_per_image
        self._objective = config.objective

    def ratio(self, record: StepRecord) -> float:
        """Return a step's loss over the loss of collapsed embeddings.

        The latter is the margin for each of the 2 B anchors (and each of its negatives, where all
        of them count).
        """
        collapsed = 2 * self._batch * self._objective.margin
        if record.objective == "all":
            collapsed *= max(1, self._batch - self._captions_per_image)
        if self._objective.reduction == "mean":
            collapsed /= self._batch
        return record.loss / collapsed


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
        values = (
            self._collapse.ratio(record),
            record.statistics["positive_similarity"],
            record.statistics["hardest_similarity"],
        )
        # A comparison that NaN fails: NaN is not near.
        near = all(abs(value - 1) < _NEAR for value in values)
        self._steps = self._steps + 1 if near else 0
        if self._steps == _STEPS:
            log.warning(
                "step %d: the embeddings have collapsed: for %d steps the loss has been %.2f times "
                "that of a single point, and pairs and hardest negatives are %.3f and %.3f alike. "
                "Start anew with a longer objective.warmup_epochs, a lower optim.lr or more "
                "optim.warmup_steps",
                record.step, _STEPS, *values,
            )  # fmt: skip

    def evaluation(self, record: EvaluationRecord) -> None:
        """Pass over a validation: a collapse shows in the steps."""

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Pass over a checkpoint."""

    def close(self) -> None:
        """Stop: nothing is open."""
