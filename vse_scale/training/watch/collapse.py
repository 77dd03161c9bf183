"""Watches for collapse: all embeddings in one spot, where the hardest negative leads nowhere.

There every similarity is 1 and every hinge is the margin. Faghri et al. (VSE++, BMVC 2018) and
Chen et al. (CVPR 2021) start with all violations because the hardest ones alone can lead into it.
"""

from __future__ import annotations

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.run.records import StepRecord

_NEAR = 0.05  # of 1, for the loss's ratio and for both similarities
_STEPS = 100  # in a row; an untrained model begins in one spot and leaves it


class CollapseWatch:
    """Says so once a run's embeddings have stayed in one spot for a while."""

    def __init__(self, config: Config) -> None:
        self._batch = config.data.global_batch
        self._captions_per_image = config.data.captions_per_image
        self._objective = config.objective
        self._steps = 0

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

    def step(self, record: StepRecord) -> None:
        """Take in a step's record, and warn if it is one too many."""
        values = (
            self.ratio(record),
            record.positive_similarity,
            record.hardest_similarity,
        )
        # Written so that what is not a number is not near.
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
