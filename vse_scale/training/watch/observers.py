"""Everyone who follows a run, behind three calls of the training loop."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, disable_created_metrics

from vse_scale.config import Config
from vse_scale.run.folder import RunFolder
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training.watch.collapse import CollapseWatch
from vse_scale.training.watch.prometheus import Endpoint, RankMetrics, RunMetrics
from vse_scale.training.watch.tensorboard import TensorBoard
from vse_scale.world.processes import World

RESTARTS = "VSE_SCALE_RESTARTS"  # the variable in which a supervisor tells its ranks


class Observers:
    """Prometheus on every rank; TensorBoard and the watch for collapse on the main one."""

    def __init__(self, config: Config, world: World, *, next_step: int, total_steps: int) -> None:
        """Start to follow a run that goes on at ``next_step``."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many series otherwise
        registry = CollectorRegistry()
        self._rank = RankMetrics(
            registry,
            device=world.device,
            pairs_per_step=config.data.global_batch // world.ranks,
        )
        self._run: RunMetrics | None = None
        self._collapse: CollapseWatch | None = None
        self._tensorboard: TensorBoard | None = None
        if world.main:
            self._run = RunMetrics(
                registry, total_steps=total_steps, restarts=int(os.environ.get(RESTARTS) or 0)
            )
            self._collapse = CollapseWatch(config)
            if config.telemetry.tensorboard:
                folder = RunFolder(Path(config.run.dir)).tensorboard_folder
                self._tensorboard = TensorBoard(folder, next_step=next_step)
        self._endpoint: Endpoint | None = None
        if config.telemetry.prometheus_port is not None:
            port = config.telemetry.prometheus_port + int(os.environ.get("LOCAL_RANK") or 0)
            self._endpoint = Endpoint(registry, port)

    def step(self, record: StepRecord) -> None:
        """Take in the record of a step."""
        self._rank.step(record)
        if self._run is not None and self._collapse is not None:
            self._run.step(record, collapse=self._collapse.ratio(record))
            self._collapse.step(record)
        if self._tensorboard is not None:
            self._tensorboard.step(record)

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take in the record of a validation."""
        if self._run is not None:
            self._run.evaluation(record)
        if self._tensorboard is not None:
            self._tensorboard.evaluation(record)

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Take in that the checkpoint at ``path`` was written within ``seconds``."""
        if self._tensorboard is not None:
            self._tensorboard.flush()
        if self._run is not None:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            self._run.checkpoint(seconds, size)

    def close(self) -> None:
        """Stop following."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._endpoint is not None:
            self._endpoint.close()
