"""Metrics of a run for Prometheus: one HTTP endpoint per rank.

Every rank serves the metrics that differ between ranks, the times above all; the main rank also
serves those that are the same on all ranks. ``docs/operations.md`` lists every metric; a test
compares the two.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from vse_scale.config import Config
from vse_scale.retrieval.metrics import DIRECTIONS, percentages
from vse_scale.run.records import EvaluationRecord, StepRecord
from vse_scale.training.contract import RESTARTS
from vse_scale.training.watch.collapse import Collapse
from vse_scale.training.watch.endpoint import Endpoint
from vse_scale.world.processes import World

# From a demonstration on a laptop to micro-batches on a large model.
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Prometheus:
    """The observer that serves the metrics of this rank; the main rank adds those of the run."""

    def __init__(self, config: Config, world: World, *, total_steps: int) -> None:
        """Start to serve on the port that ``config`` gives this rank, if it gives one."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many series otherwise
        registry = CollectorRegistry()
        self._rank = RankMetrics(
            registry, device=world.device, pairs_per_step=config.data.global_batch // world.ranks
        )
        self._run: RunMetrics | None = None
        if world.main:
            restarts = int(os.environ.get(RESTARTS) or 0)
            self._run = RunMetrics(registry, total_steps=total_steps, restarts=restarts)
        self._collapse = Collapse(config)
        self._endpoint: Endpoint | None = None
        if config.telemetry.prometheus_port is not None:
            port = config.telemetry.prometheus_port + world.local_rank
            self._endpoint = Endpoint(registry, config.telemetry.address, port)

    def step(self, record: StepRecord) -> None:
        """Take in a step's record."""
        self._rank.step(record)
        if self._run is not None:
            self._run.step(record, collapse=self._collapse.ratio(record))

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take in a validation's record."""
        if self._run is not None:
            self._run.evaluation(record)

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Take in that the checkpoint at ``path`` was written within ``seconds``."""
        if self._run is not None:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            self._run.checkpoint(seconds, size)

    def close(self) -> None:
        """Stop serving."""
        if self._endpoint is not None:
            self._endpoint.close()


class RankMetrics:
    """The metrics that every rank measures by itself.

    Args:
        registry: Registry that the metrics are collected from.
        device: Of this rank; a GPU's memory is watched.
        pairs_per_step: Pairs of a global batch that this rank trains on.
    """

    def __init__(
        self, registry: CollectorRegistry, *, device: torch.device, pairs_per_step: int
    ) -> None:
        self._device = device if device.type == "cuda" else None
        self._pairs_per_step = pairs_per_step
        self._pairs = Counter(
            "vse_scale_pairs", "pairs that this rank trained on", registry=registry
        )
        self._step_seconds = Histogram(
            "vse_scale_step_seconds", "seconds of a step, the wait for data included",
            buckets=_STEP_BUCKETS, registry=registry,
        )  # fmt: skip
        self._phase_seconds = Counter(
            "vse_scale_phase_seconds", "seconds spent, by part of the step", ["phase"],
            registry=registry,
        )  # fmt: skip
        self._bytes_sent = Counter(
            "vse_scale_loss_sent_bytes", "bytes that left this rank for the loss", registry=registry
        )
        self._staged = {
            "fetched_bytes": Counter(
                "vse_scale_staging_fetched_bytes", "bytes of remote shards copied by this rank",
                registry=registry,
            ),
            "wait_seconds": Counter(
                "vse_scale_staging_wait_seconds", "seconds that this rank's loader waited for them",
                registry=registry,
            ),
        }  # fmt: skip
        self._staged_shards = Counter(
            "vse_scale_staged_shards", "remote shards, by where they were found", ["place"],
            registry=registry,
        )  # fmt: skip
        self._gpu_memory = Gauge(
            "vse_scale_gpu_memory_bytes", "GPU memory of torch's allocator", ["kind"],
            registry=registry,
        )  # fmt: skip

    def step(self, record: StepRecord) -> None:
        """Take in a step's record."""
        self._pairs.inc(self._pairs_per_step)
        self._bytes_sent.inc(record.bytes_sent)
        for name, counter in self._staged.items():
            counter.inc(record.staging.get(name, 0.0))
        for place, name in (("source", "fetched_shards"), ("cache", "found_shards")):
            self._staged_shards.labels(place).inc(record.staging.get(name, 0.0))
        for phase, seconds in record.seconds.items():
            if phase == "step":
                self._step_seconds.observe(seconds)
            else:
                # What is left of a phase, once the communication within it is taken out, can come
                # out below zero by the clock's resolution; a counter refuses to fall.
                self._phase_seconds.labels(phase).inc(max(0.0, seconds))
        if self._device is not None:
            self._gpu_memory.labels("allocated").set(torch.cuda.memory_allocated(self._device))
            self._gpu_memory.labels("reserved").set(torch.cuda.memory_reserved(self._device))
            self._gpu_memory.labels("peak").set(torch.cuda.max_memory_allocated(self._device))


class RunMetrics:
    """The metrics that are the same on every rank, served by the main one.

    Args:
        registry: Registry that the metrics are collected from.
        total_steps: Steps of the whole schedule.
        restarts: Number of restarts of the run, as its supervisor counts them.
    """

    def __init__(self, registry: CollectorRegistry, *, total_steps: int, restarts: int) -> None:
        self._stepped = self._kept = time.monotonic()

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            made = Gauge(f"vse_scale_{name}", meaning, labels, registry=registry)
            if not labels:
                made.set(math.nan)  # until it is known: a loss of 0 would be news
            return made

        self._step = gauge("step", "the step that was trained last, counted from 0")
        gauge("step_age_seconds", "seconds since a step ended, or since the start").set_function(
            lambda: time.monotonic() - self._stepped
        )
        gauge("scheduled_steps", "steps of the whole schedule").set(total_steps)
        self._loss = gauge("loss", "the loss of the last step")
        self._rate = gauge("learning_rate", "learning rate by parameter group", "group")
        self._norm = gauge("gradient_norm", "norm of the whole gradient before clipping")
        # Those that the objective does not have stay NaN.
        self._statistics = {
            "violating": gauge("violating_ratio", "share of anchors with a violating negative"),
            "positive_similarity": gauge("positive_similarity", "mean cosine of the batch's pairs"),
            "hardest_similarity": gauge(
                "hardest_similarity", "mean cosine with the hardest negative"
            ),
        }
        self._collapse = gauge("collapse_ratio", "loss over that of collapsed embeddings")
        self._skipped = Counter(
            "vse_scale_skipped_steps", "steps left out because they were not finite",
            registry=registry,
        )  # fmt: skip
        started_again = Counter(
            "vse_scale_restarts", "how often the run was started again", registry=registry
        )
        started_again.inc(restarts)
        self._recall = gauge("recall_ratio", "validation recall at k", "direction", "k")
        self._shares = {
            metric.name: gauge(f"{metric.name}_ratio", f"validation {metric.label}", "direction")
            for metric in percentages()
            if metric.k is None
        }
        self._evaluation_seconds = gauge("evaluation_seconds", "seconds of the last validation")
        self._checkpoint_seconds = gauge("checkpoint_seconds", "seconds of the last checkpoint")
        self._checkpoint_stall = gauge(
            "checkpoint_stall_seconds", "seconds that the steps waited for the last checkpoint"
        )
        self._checkpoint_bytes = gauge("checkpoint_bytes", "bytes of the last checkpoint")
        gauge(
            "checkpoint_age_seconds", "seconds since a checkpoint, or since the start"
        ).set_function(lambda: time.monotonic() - self._kept)

    def step(self, record: StepRecord, collapse: float | None) -> None:
        """Take in a step's record, and what `Collapse.ratio` makes of it."""
        self._stepped = time.monotonic()
        self._step.set(record.step)
        self._loss.set(record.loss)
        for group, rate in record.learning_rate.items():
            self._rate.labels(group).set(rate)
        self._norm.set(record.gradient_norm)
        for name, shown in self._statistics.items():
            shown.set(record.statistics.get(name, math.nan))
        self._collapse.set(math.nan if collapse is None else collapse)
        if record.checkpoint:
            self._checkpoint_stall.set(record.checkpoint["stall"])
        if not record.applied:
            self._skipped.inc()

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take in a validation's record, whose recalls are in percent."""
        self._evaluation_seconds.set(record.seconds)
        for direction in DIRECTIONS:
            for metric in percentages():
                ratio = record.recalls[direction][metric.name] / 100
                if metric.k is None:
                    self._shares[metric.name].labels(direction).set(ratio)
                else:
                    self._recall.labels(direction, str(metric.k)).set(ratio)

    def checkpoint(self, seconds: float, size: int) -> None:
        """Take in that a checkpoint of ``size`` bytes was written in ``seconds``."""
        self._kept = time.monotonic()
        self._checkpoint_seconds.set(seconds)
        self._checkpoint_bytes.set(size)
