"""A real Prometheus server scrapes a real run of two ranks, and sees what the run wrote down."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from documented import documented_metrics
from prometheus_server import MONITORING, Prometheus, free_ports
from warm import vse_scale

from vse_scale.run.journal import read_journal

pytestmark = pytest.mark.slow

SMALL = Path(__file__).parents[1] / "small.yaml"
TRAINING = """
base: {small}
data: {{path: {scenes}}}
model: {{image: {{size: 64}}}}
optim: {{drop_epochs: [20]}}
train: {{epochs: 24, frozen_backbone_epochs: 0}}
eval: {{every_epochs: 5}}
run: {{dir: {folder}/run, checkpoint_epochs: 5}}
telemetry: {{prometheus_port: {port}}}
"""


@dataclass(frozen=True)
class Watched:
    """A finished run and the server that watched it."""

    prometheus: Prometheus
    folder: Path
    main: str  # selector of the main rank

    def samples(self, name: str, labels: str = "") -> dict[float, float]:
        return self.prometheus.samples(f"{name}{{{self.main}{labels}}}")


@pytest.fixture(scope="module")
def watched(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus (Debian's package of that name)")
    folder = tmp_path_factory.mktemp("watched")
    port = free_ports(2)
    config = folder / "watched.yaml"
    config.write_text(TRAINING.format(small=SMALL, scenes=scenes, folder=folder, port=port))
    targets = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    prometheus = Prometheus(folder, targets, run="watched")
    try:
        result = vse_scale("train", "--ranks", "2", "--config", config)
        assert result.returncode == 0, result.stderr[-4000:]
        yield Watched(prometheus, folder / "run", f'instance="{targets[0]}"')
    finally:
        prometheus.close()


def test_what_is_scraped_agrees_with_the_log(watched: Watched) -> None:
    log = read_journal(watched.folder / "metrics.jsonl")
    step_at = {t: int(s) for t, s in watched.samples("vse_scale_step").items() if s == s}
    assert len(set(step_at.values())) >= 5  # else this compares nothing
    waited = watched.samples("vse_scale_phase_seconds_total", ',phase="data"')
    pairs = watched.samples("vse_scale_pairs_total")
    heads = watched.samples("vse_scale_learning_rate", ',group="heads"')
    exact = 0
    for name, key in (
        ("loss", "loss"), ("gradient_norm", "gradient_norm"), ("violating_ratio", "violating"),
        ("positive_similarity", "positive_similarity"),
        ("hardest_similarity", "hardest_similarity"),
    ):  # fmt: skip
        seen = watched.samples(f"vse_scale_{name}")
        for when, step in step_at.items():
            # A scrape may fall into the moment between two steps.
            beside = [record[key] for record in log[max(0, step - 1) : step + 2]]
            assert seen[when] in beside
            exact += seen[when] == log[step][key]
    assert exact >= 0.8 * 5 * len(step_at)
    for when, step in step_at.items():
        assert pairs[when] / 8 - 1 == pytest.approx(step, abs=1)
        assert heads[when] in {
            r["learning_rate"]["heads"] for r in log[max(0, step - 1) : step + 2]
        }
        total = sum(record["seconds"]["data"] for record in log[: step + 1])
        around = sum(record["seconds"]["data"] for record in log[max(0, step - 1) : step + 2])
        assert waited[when] == pytest.approx(total, abs=around + 1e-9)


def test_validation_and_checkpoints_agree_with_the_files(watched: Watched) -> None:
    evaluations = read_journal(watched.folder / "evaluations.jsonl")
    for way in ("i2t", "t2i"):
        for k in (1, 5, 10):
            labels = f',direction="{way}",k="{k}"'
            seen = watched.samples("vse_scale_recall_ratio", labels)
            written = {e[way][f"r{k}"] / 100 for e in evaluations}
            assert set(seen.values()) <= written
    newest = max((watched.folder / "checkpoints").glob("step-*"))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    sizes = [v for v in watched.samples("vse_scale_checkpoint_bytes").values() if v == v]
    # The state's numbers have more digits later.
    assert sizes[-1] == pytest.approx(size, rel=0.01)
    ages = list(watched.samples("vse_scale_checkpoint_age_seconds").values())
    assert any(later < earlier for earlier, later in itertools.pairwise(ages))


def test_both_ranks_train_and_only_one_tells_what_is_shared(watched: Watched) -> None:
    series = watched.prometheus.get("query", query="max_over_time(vse_scale_pairs_total[1h])")
    assert len({entry["metric"]["instance"] for entry in series["result"]}) == 2
    series = watched.prometheus.get("query", query="count_over_time(vse_scale_loss[1h])")
    (entry,) = series["result"]
    assert entry["metric"] | {"job": "vse-scale", "run": "watched"} == entry["metric"]


def test_every_series_is_documented_and_every_documented_metric_is_there(watched: Watched) -> None:
    names = watched.prometheus.get("label/__name__/values")
    ours = {re.sub("_(bucket|sum|count)$", "", n) for n in names if n.startswith("vse_scale_")}
    # This run is on a CPU.
    assert ours == set(documented_metrics()) - {"vse_scale_gpu_memory_bytes"}
    foreign = {name for name in names if not name.startswith(("vse_scale_", "scrape_", "ALERTS"))}
    assert foreign == {"up"}


def test_the_dashboards_queries_return_data(watched: Watched) -> None:
    dashboard = json.loads((MONITORING / "grafana" / "vse-scale.json").read_text())
    # Into the run: the panels show a run that goes on.
    when = sorted(watched.samples("vse_scale_recall_ratio", ',direction="i2t",k="1"'))[-1]
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "20s").replace("$run", ".*")
            found = watched.prometheus.get("query", query=expression, time=when)["result"]
            if "gpu" in expression:
                assert not found, panel["title"]
                continue
            assert found, f"{panel['title']}: {expression}"
            assert all(math.isfinite(float(entry["value"][1])) for entry in found), panel["title"]


def test_the_alerts_are_loaded_and_a_sound_run_raised_none_of_them(watched: Watched) -> None:
    (group,) = watched.prometheus.get("rules")["groups"]
    assert len(group["rules"]) == 7
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    fired = watched.prometheus.get("query", query='ALERTS{alertstate="firing"}[1h]')["result"]
    assert not fired


def test_a_taken_port_warns_once_and_the_run_goes_on(small_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = vse_scale(
            *("train", "--ranks", "1", "--config", small_run, "train.max_steps=2"),
            f"telemetry.prometheus_port={port}",
        )
    assert result.returncode == 0, result.stderr[-4000:]
    said = [line for line in result.stderr.splitlines() if f"port {port}" in line]
    assert len(said) == 1
    assert "Address already in use" in said[0]
