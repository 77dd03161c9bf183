"""A run's curves for TensorBoard, in ``tensorboard/`` of its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vse_scale.config import Config
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training.watch.scalars import scalars_of_evaluation, scalars_of_step


class TensorBoard:
    """Writes the records of steps and validations as scalars over the step."""

    def __init__(
        self, config: Config, folder: RunFolder, *, next_step: int, total_steps: int
    ) -> None:
        """Open the run's curves; those that a killed run drew from ``next_step`` on are hidden."""
        # Imported here: only the rank that writes should wait for it.
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        above = folder.tensorboard_folder
        above.mkdir(parents=True, exist_ok=True)
        # Not torch's SummaryWriter, which names the file after this host. TensorBoard reads the
        # files in the order of their names.
        number = sum(1 for _ in above.iterdir())
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:06d}"
        self._writer = RecordWriter((above / name).open("xb"))
        self._write(next_step, file_version="brain.Event:2")
        self._write(next_step, session_log=SessionLog(status=SessionLog.START))

    def step(self, record: StepRecord) -> None:
        """Write a step's record, as an event of many scalars."""
        self._write_scalars(record.step, scalars_of_step(record))

    def evaluation(self, record: EvaluationRecord) -> None:
        """Write a validation's record."""
        self._write_scalars(record.step, scalars_of_evaluation(record))

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Bring the curves up to the checkpoint into the file."""
        self._writer.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._writer.close()

    def _write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # An event each would take seven times as long.
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step, summary=Summary(value=values))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
