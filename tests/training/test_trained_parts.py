"""Runs of which a part trains: under every ZeRO stage, resumed, and opened from a checkpoint.

After microsoft/DeepSpeed#5848 and #3654 (frozen weights are lost from, or break, checkpoints of
sharded optimizers).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from launching import Job, Trained, assert_same_bits, assert_same_step, train_jobs

LAYERS = "model.text.architecture.num_hidden_layers=2"
LAST = (LAYERS, "model.text.train_last=1", "model.image.frozen=true")
LORA = (LAYERS, "model.text.lora={rank: 4, dropout: 0.2, targets: [query, value]}")
INSIDE = "model.text.encoder."


@pytest.fixture(scope="module")
def trained(few_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("parts")
    jobs = {f"stage-{n}": Job((*LAST, f"engine.zero_stage={n}"), count=2) for n in (0, 2, 3)}
    for name, keys in {"last": LAST, **({"lora": LORA} if find_spec("peft") else {})}.items():
        jobs[name] = Job(keys, count=6)
        jobs[f"{name}-begun"] = Job(keys, count=3, save=True, folder=folder / name)
        jobs[f"{name}-resumed"] = Job(keys, first=None, count=3, folder=folder / name)
    return train_jobs(few_steps, folder, 2, jobs)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_every_stage_trains_the_same_part(trained: dict[str, Trained], stage: int) -> None:
    expected, found = trained["stage-2"].steps, trained[f"stage-{stage}"].steps
    assert_same_step(found[-1], expected[-1])
    state = found[-1]["state"]
    assert not {name for name in state if name.startswith(f"exp_avg.{INSIDE[6:]}encoder.layer.0")}
    assert {name for name in state if name.startswith(f"exp_avg.{INSIDE[6:]}encoder.layer.1")}
    assert state.keys() == expected[-1]["state"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last", "lora"])
def test_a_resumed_run_is_the_same_to_the_bit(trained: dict[str, Trained], name: str) -> None:
    if name not in trained:
        pytest.skip("peft is not installed: pip install 'vse-scale[lora]'")
    resumed, whole = trained[f"{name}-resumed"], trained[name]
    assert resumed.first == 3
    assert_same_bits(resumed.steps[-1]["state"], whole.steps[-1]["state"])
    start, end = whole.start, whole.steps[-1]["state"]
    moved = {k for k in start if k.startswith(INSIDE) and not torch.equal(start[k], end[k])}
    assert moved
    part = ".lora_" if name == "lora" else ".layer.1."
    assert all(part in name for name in moved)
