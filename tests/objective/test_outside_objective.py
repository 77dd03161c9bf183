"""An objective from outside, named as module:Class, trains, is planned for and is reported."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Job, assert_same_step, train_jobs
from torch.nn import functional as F
from warm import vse_scale

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.objective import make_objective
from vse_scale.planning.traffic import Workload, loss_bytes

KIND = "objective.kind=contrastive:Contrastive"


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is found by other processes, as that of an installed package would be."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture
def config(small_run: Path, tmp_path: Path) -> Path:
    """Without the recipe's keys of the hinge, which this objective refuses."""
    recipe = Config.load(small_run).model_dump(mode="json")
    recipe["objective"] = {"kind": "contrastive:Contrastive", "temperature": 0.2}
    recipe["train"]["frozen_backbone_epochs"] = 0
    path = tmp_path / "contrastive.yaml"
    path.write_text(json.dumps(recipe))
    return path


def test_any_number_of_ranks_takes_the_steps_of_one(
    config: Path, tmp_path: Path, on_path: None
) -> None:
    jobs = {"whole": Job(), "pieces": Job(overrides=("engine.micro_batches=2",))}
    alone, together = (train_jobs(config, tmp_path, ranks, jobs) for ranks in (1, 2))
    for name in jobs:
        assert_same_step(together[name].steps[0], alone["whole"].steps[0])
    record = together["whole"].steps[0]["record"]
    assert record["bytes_sent"] == loss_bytes(Workload.of(Config.load(config), bfloat16=False), 2)


@pytest.mark.slow
def test_it_trains_and_is_reported_and_planned_for(
    config: Path, tmp_path: Path, on_path: None
) -> None:
    run = tmp_path / "run"
    given = ("--config", str(config), "telemetry.prometheus_port=null", "train.max_steps=12")
    done = vse_scale("train", *given)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {step["objective"] for step in steps} == {"contrastive"}
    assert all("violating" not in step and 0 <= step["accuracy"] <= 1 for step in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] < math.log(15) + 2

    reported = vse_scale("report", "--run", str(run))
    assert reported.returncode == 0, reported.stderr
    assert "mean over 16 pairs, in nats" in (run / "report.html").read_text()

    planned = vse_scale("plan", "--config", str(config), "--gpus", "2", "--json")
    assert planned.returncode == 0, planned.stderr
    sent = json.loads(planned.stdout)["2"]["2"]["sent"]["loss"]
    assert sent == 8 * (2 * 24 * 4 + 8)


def test_its_loss_of_one_spot_is_what_it_says() -> None:
    objective = make_objective("contrastive:Contrastive")
    rows = F.normalize(torch.ones(12, 8, dtype=torch.float64), dim=1)
    loss = objective.loss(rows[:6], rows)
    assert float(loss) == pytest.approx(objective.collapsed_loss("contrastive", 12, 2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"margin": 0.2}, "margin"), ({"temperature": 0.0}, "temperature is 0.0")],
)
def test_it_has_settings_of_its_own(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_objective("contrastive:Contrastive", **settings)
