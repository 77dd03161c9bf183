"""Metrics: the documented ones, no others; named by Prometheus's rules; fed by a run's records."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from documented import documented_metrics
from prometheus_client import CollectorRegistry, generate_latest
from records import EVALUATION, RECORD

from vse_scale.config import Config
from vse_scale.training.contract import RESTARTS
from vse_scale.training.supervisor import Supervisor
from vse_scale.training.watch.observers import Observers
from vse_scale.training.watch.prometheus import RankMetrics, RunMetrics
from vse_scale.world.join import World

CPU = torch.device("cpu")


def exported(registry: CollectorRegistry) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels by name, as a metric's owner would look them up."""
    found = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels))
    return found


def fed() -> tuple[CollectorRegistry, CollectorRegistry]:
    """The registries of what every rank serves, and of what the main one adds."""
    of_rank, of_run = CollectorRegistry(), CollectorRegistry()
    RankMetrics(of_rank, device=CPU, pairs_per_step=8).step(RECORD)
    run = RunMetrics(of_run, total_steps=50, restarts=2)
    run.step(RECORD, collapse=0.4)
    run.evaluation(EVALUATION)
    run.checkpoint(seconds=2.5, size=1000)
    return of_rank, of_run


def test_the_table_and_what_is_exported_are_the_same() -> None:
    table = documented_metrics()
    for registry, ranks in zip(fed(), ("all", "main"), strict=True):
        documented = {
            name: (kind, labels) for name, (kind, labels, who) in table.items() if who == ranks
        }
        found = exported(registry)
        if ranks == "all":
            # Without a GPU it has no samples to read labels from.
            documented["vse_scale_gpu_memory_bytes"] = ("gauge", frozenset())
            assert table["vse_scale_gpu_memory_bytes"][1] == {"kind"}
        assert found == documented


def test_names_end_in_their_unit() -> None:
    without_unit = {
        "vse_scale_step", "vse_scale_scheduled_steps", "vse_scale_loss", "vse_scale_learning_rate",
        "vse_scale_gradient_norm", "vse_scale_positive_similarity", "vse_scale_hardest_similarity",
    }  # fmt: skip
    for name in documented_metrics().keys() - without_unit:
        assert name.endswith(("_seconds", "_bytes", "_ratio", "_total")), name


def test_values() -> None:
    of_rank, of_run = fed()
    assert of_rank.get_sample_value("vse_scale_pairs_total") == 8
    assert of_rank.get_sample_value("vse_scale_step_seconds_sum") == 0.96875
    assert of_rank.get_sample_value("vse_scale_step_seconds_count") == 1
    phase = {"phase": "backward"}
    assert of_rank.get_sample_value("vse_scale_phase_seconds_total", phase) == 0.5
    assert of_rank.get_sample_value("vse_scale_phase_seconds_total", {"phase": "objective"}) == 0
    assert of_rank.get_sample_value("vse_scale_phase_seconds_total", {"phase": "step"}) is None
    assert of_rank.get_sample_value("vse_scale_loss_sent_bytes_total") == 4096
    shards = {
        place: of_rank.get_sample_value("vse_scale_staged_shards_total", {"place": place})
        for place in ("source", "cache")
    }
    assert shards == {"source": 3, "cache": 2}
    assert of_rank.get_sample_value("vse_scale_staging_fetched_bytes_total") == 5000
    assert of_rank.get_sample_value("vse_scale_staging_wait_seconds_total") == 0.75
    assert of_run.get_sample_value("vse_scale_scheduled_steps") == 50
    assert of_run.get_sample_value("vse_scale_restarts_total") == 2
    assert of_run.get_sample_value("vse_scale_collapse_ratio") == 0.4
    recall = {"direction": "t2i", "k": "5"}
    assert of_run.get_sample_value("vse_scale_recall_ratio", recall) == 0.5
    assert of_run.get_sample_value("vse_scale_checkpoint_bytes") == 1000


def test_a_skipped_step_is_counted_and_its_loss_shown_as_it_is() -> None:
    registry = CollectorRegistry()
    run = RunMetrics(registry, total_steps=50, restarts=0)
    assert math.isnan(registry.get_sample_value("vse_scale_loss") or 0.0)
    run.step(RECORD, collapse=0.4)
    run.step(replace(RECORD, applied=False, loss=math.inf), collapse=math.inf)
    assert registry.get_sample_value("vse_scale_skipped_steps_total") == 1
    assert registry.get_sample_value("vse_scale_loss") == math.inf


def test_ages_go_on_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    registry = CollectorRegistry()
    run = RunMetrics(registry, total_steps=50, restarts=0)
    now[0] = 130.0
    run.step(RECORD, collapse=0.4)
    now[0] = 150.0
    assert registry.get_sample_value("vse_scale_step_age_seconds") == 20
    assert registry.get_sample_value("vse_scale_checkpoint_age_seconds") == 50
    run.checkpoint(seconds=1.0, size=1)
    assert registry.get_sample_value("vse_scale_checkpoint_age_seconds") == 0


def test_a_gpus_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("memory_allocated", "memory_reserved", "max_memory_allocated")):
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: 10 + number)
    registry = CollectorRegistry()
    RankMetrics(registry, device=torch.device("cuda", 0), pairs_per_step=8).step(RECORD)
    for number, kind in enumerate(("allocated", "reserved", "peak")):
        value = registry.get_sample_value("vse_scale_gpu_memory_bytes", {"kind": kind})
        assert value == 10 + number


def test_other_ranks_keep_to_what_is_theirs(small_run: Path) -> None:
    config = Config.load(small_run, ["telemetry.prometheus_port=null"])
    observers = Observers(config, World(1, 2, CPU), next_step=0, total_steps=9)
    observers.step(RECORD)
    observers.evaluation(EVALUATION)
    observers.close()
    assert not Path(config.run.dir).exists()


def test_no_series_says_when_it_was_created(small_run: Path) -> None:
    config = Config.load(small_run, ["telemetry.prometheus_port=null"])
    Observers(config, World(1, 2, CPU), next_step=0, total_steps=9).close()
    assert b"_created" not in generate_latest(fed()[0])


def test_ranks_are_told_how_often_they_were_started_again(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    start = subprocess.Popen

    def launcher(command: list[str], env: dict[str, str], **options) -> subprocess.Popen[bytes]:
        told.append(env[RESTARTS])
        return start([sys.executable, "-c", f"exit({0 if len(told) == 3 else 247})"])

    monkeypatch.setattr(subprocess, "Popen", launcher)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    supervisor = Supervisor(Config.load(small_run), [], ranks=1, max_restarts=3)
    assert supervisor.run() == 0
    assert told == ["0", "1", "2"]
