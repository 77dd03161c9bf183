"""What the plan says of memory and traffic, against what real ranks keep and send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import run_ranks, vse_scale

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.scaling import (
    STAGES,
    Workload,
    efficiency,
    loss_bytes,
    page,
    state_bytes,
    step_bytes,
)

WORKER = Path(__file__).with_name("rank_of_scaling.py")


def work(**changes: Any) -> Workload:
    given = {
        "parameters": 1000, "autocast_parameters": 0, "gathered_parameters": 0,
        "global_batch": 64, "embed_dim": 8, "hardest": True,
    }  # fmt: skip
    return Workload(**{**given, **changes})


def test_one_rank_sends_nothing() -> None:
    for stage in STAGES:
        assert sum(step_bytes(work(), stage, ranks=1).values()) == 0
        assert efficiency(work(), stage, 1, pair_seconds=0.1, bytes_per_second=1e9) == 1


def test_traffic_of_gradients_and_weights() -> None:
    """The published counts: 2 P of an all-reduce, 3 P of stage 3 with one gathering each way."""
    many = 10**6
    whole = 4 * 1000
    for stage, gradients, weights in ((0, 2, 0), (1, 2, 1), (2, 2, 1), (3, 1, 1)):
        sent = step_bytes(work(), stage, ranks=many)
        assert sent["gradients"] == pytest.approx(gradients * whole, rel=1e-5)
        assert sent["weights"] == pytest.approx(weights * whole, rel=1e-5)


def test_memory_falls_with_the_stage_and_the_ranks() -> None:
    parts = [state_bytes(work(), stage, ranks=8) for stage in STAGES]
    whole = 4 * 1000
    assert parts[0]["weights"] + parts[0]["moments"] + parts[0]["gradients"] == 4 * whole
    assert parts[2]["moments"] == 2 * whole / 8
    assert parts[2]["gradients"] == parts[2]["master"] == whole / 8


def test_efficiency_falls_with_the_ranks_and_rises_with_the_batch() -> None:
    figures = {"pair_seconds": 1e-3, "bytes_per_second": 1e6}
    by_ranks = [efficiency(work(), 2, ranks, **figures) for ranks in (1, 2, 8, 64)]
    assert by_ranks == sorted(by_ranks, reverse=True)
    assert efficiency(work(global_batch=640), 2, 8, **figures) > by_ranks[2]


def test_the_page_has_a_table_for_each_number_of_ranks() -> None:
    text = page(work(), [2, 8])
    assert "8 ranks, 8 pairs each" in text
    assert "computing" not in text
    constants = {"pair_seconds": 1e-3, "bytes_per_second": 1e9}
    assert text.count("\n") + 2 == page(work(), [2, 8], constants).count("\n")


def test_the_command_prints_json(small_run: Path) -> None:
    given = ("plan", "--config", small_run, "--gpus", "2", "--gpus", "8", "--json")
    told = json.loads(vse_scale(*given).stdout)
    planned = Workload.of(Config.load(small_run), bfloat16=True)
    assert told["8"]["2"]["sent"]["loss"] == loss_bytes(planned, 8)
    assert "efficiency" not in told["8"]["2"]


def counted(config: Path, tmp_path: Path, ranks: int) -> dict[str, Any]:
    run_ranks(ranks, WORKER, [str(config), str(tmp_path / "out"), str(tmp_path)])
    return json.loads((tmp_path / "out").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_it_agrees_with_what_real_ranks_send_and_keep(
    small_run: Path, tmp_path: Path, ranks: int
) -> None:
    text = small_run.read_text().replace("embed_dim: 24", "embed_dim: 256")
    text = text.replace("warmup_epochs: 1", "warmup_epochs: 0").replace(
        "_epochs: 1,", "_epochs: 0,"
    )
    small_run.write_text(text + "telemetry: {prometheus_port: null, tensorboard: false}\n")
    config = Config.load(small_run)
    planned, (model, _) = Workload.of(config, bfloat16=False), blueprint(config)
    found = counted(small_run, tmp_path, ranks)
    for stage in STAGES:
        real, sent = found[str(stage)], step_bytes(planned, stage, ranks)
        assert real["bytes_sent"] == loss_bytes(planned, ranks)
        # Both numbers hold the loss; the rest are flags and norms of some bytes.
        assert sum(real["sent"].values()) == pytest.approx(sum(sent.values()), rel=0.005)
        parts = state_bytes(planned, stage, ranks)
        kept = sum(value for part, value in parts.items() if part != "bucket")
        if stage == 3:
            # Whole weights are given back before the update, and the engine keeps as much on the
            # CPU. Small ones stay whole.
            kept += 4 * sum(p.numel() for p in model.parameters() if p.numel() <= 100_000)
        # The bucket comes with the first gradient and may be gone at the update.
        assert any(
            real["kept"] == pytest.approx(kept + bucket, rel=0.1)
            for bucket in (0.0, parts["bucket"])
        )
