"""A run's curves for TensorBoard, in ``tensorboard/`` of its folder."""

from __future__ import annotations

from pathlib import Path

from vse_scale.config import Config
from vse_scale.retrieval.metrics import DIRECTIONS, percentages
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord

# Tags of the objective's figures that are not their names.
_TAGS = {
    "positive_similarity": "similarity/positive",
    "hardest_similarity": "similarity/hardest",
}


class TensorBoard:
    """Writes the records of steps and validations as scalars over the step."""

    def __init__(
        self, config: Config, folder: RunFolder, *, next_step: int, total_steps: int
    ) -> None:
        """Open the run's curves; those that a killed run drew from ``next_step`` on are hidden."""
        # Imported here: only the rank that writes should wait for it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder.tensorboard_folder, purge_step=next_step)

    def step(self, record: StepRecord) -> None:
        """Write a step's record, as an event of many scalars."""
        self._write(
            record.step,
            {
                "loss": record.loss,
                "gradient_norm": record.gradient_norm,
                "pairs_per_second": record.pairs_per_second,
                **{_TAGS.get(name, name): value for name, value in record.statistics.items()},
                **{f"learning_rate/{g}": rate for g, rate in record.learning_rate.items()},
                **{f"seconds/{phase}": value for phase, value in record.seconds.items()},
            },
        )

    def evaluation(self, record: EvaluationRecord) -> None:
        """Write a validation's record."""
        recalls = {
            f"recall/{way}_{metric.name}": record.recalls[way][metric.name]
            for way in DIRECTIONS
            for metric in percentages()
        }
        self._write(record.step, {"rsum": record.rsum, **recalls})

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Bring the curves up to the checkpoint into the file."""
        self._writer.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._writer.close()

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # `add_scalar` would write an event each: seven times as long.
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.file_writer.add_summary(Summary(value=values), step)
