"""Starting real ranks from a test."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from warm import WarmGroup

from vse_scale.run.journal import read_journal
from vse_scale.training.checkpoint import TENSORS

WORKER = Path(__file__).with_name("rank_of_training.py")


def random_run(
    scenes: Path,
    rest: str = "",
    *,
    every: int | None = None,
    falls: str = "drop_epochs: [1.5]",
    gather_gb: float = 8,
) -> str:
    """A configuration of a small model that draws at random wherever it can, of two epochs.

    Args:
        scenes: the dataset.
        rest: further sections, YAML.
        every: steps between two checkpoints; None: an epoch.
        falls: how the learning rate does.
        gather_gb: of larger checkpoints each rank writes its own part.
    """
    return f"""
data: {{path: {scenes}, global_batch: 16, threads: 1, word_drop: 0.3}}
model:
  embed_dim: 24
  dropout: 0.2
  image: {{backbone: tiny, size: 32}}
  text:
    vocab_size: 120
    architecture:
      {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
optim: {{lr: 1.0e-3, text_scale: 1.0, backbone_scale: 1.0, {falls}}}
train: {{epochs: 2, calibration_images: 16}}
eval: {{batch: 16}}
run: {{dir: unused, checkpoint_steps: {"null" if every is None else every}, gather_gb: {gather_gb}}}
{rest}
"""


@dataclass(frozen=True)
class Job:
    """A run of a few steps.

    Attributes:
        overrides: of the configuration.
        first: step to begin with; None goes on from the checkpoint in the run's folder.
        count: how many steps.
        save: whether to write a checkpoint after them.
        every_state: whether to keep the state after each step, rather than after the last.
        poisoned: steps at which the last rank's gradient, and no other's, is infinite.
        folder: of the run; None makes a new one.
    """

    overrides: tuple[str, ...] = ()
    first: int | None = 0
    count: int = 1
    save: bool = False
    every_state: bool = False
    poisoned: tuple[int, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Trained:
    """What a job left.

    Attributes:
        first: its first step.
        start: whole weights and optimizer state by name, as in ``Engine.shares``, before it.
        steps: by step ``gradient`` (of the global loss, by parameter), ``record`` (the line of the
            journal), ``pairs`` (image id and sum of token ids of the global batch) and, after the
            last or every one, ``state``.
        folder: of the run.
    """

    first: int
    start: dict[str, torch.Tensor]
    steps: list[dict[str, Any]]
    folder: Path


def train_jobs(
    config: Path, folder: Path, ranks: int, jobs: dict[str, Job], hosts: list[Path] | None = None
) -> dict[str, Trained]:
    """Run all ``jobs`` one after the other in the same ``ranks`` processes.

    ``hosts`` are the folders in which the ranks run, where they are not to share one.
    """
    here = Path(tempfile.mkdtemp(dir=folder))
    described = []
    folders = {name: job.folder or here / f"run-{name}" for name, job in jobs.items()}
    for name, job in jobs.items():
        overrides = [*job.overrides, f"run.dir={folders[name]}"]
        described.append(
            {**asdict(job), "folder": None, "overrides": overrides, "out": str(here / f"{name}.pt")}
        )
    (here / "jobs.json").write_text(json.dumps(described))
    run_ranks(ranks, WORKER, config, here / "jobs.json", cwd=hosts, start=WarmGroup)
    return {name: Trained(**torch.load(here / f"{name}.pt"), folder=folders[name]) for name in jobs}


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative distance of two sets of tensors, taken as one vector each."""
    assert left.keys() == right.keys()
    difference = sum((left[name].double() - right[name].double()).square().sum() for name in left)
    return float((difference / sum(t.double().square().sum() for t in left.values())) ** 0.5)


def assert_same_step(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Same pairs; loss, gradient and updated weights within ``tolerance``."""
    assert torch.equal(found["pairs"], expected["pairs"])
    for key in ("loss", "gradient_norm"):
        assert found["record"][key] == pytest.approx(expected["record"][key], rel=tolerance)
    assert distance(expected["gradient"], found["gradient"]) < tolerance
    assert distance(weights_of(expected["state"]), weights_of(found["state"])) < tolerance


def weights_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("model.")}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def journal(run: Path, name: str, value: str) -> list[tuple[int, float]]:
    """Return step and ``value`` of each record of a run's journal."""
    return [(record["step"], record[value]) for record in read_journal(run / name)]


def assert_same_run(
    run: Path, whole: Path, beside: frozenset[str] = frozenset(), *, same_best: bool = True
) -> None:
    """The same weights and state to the bit, every record once, and nothing beside them.

    Args:
        run: that was disturbed.
        whole: that was not.
        beside: what ``run`` alone may have in its folder.
        same_best: whether the two were validated after the same steps.
    """
    newest = [max((folder / "checkpoints").glob("step-*")) for folder in (run, whole)]
    assert newest[0].name == newest[1].name
    assert_same_bits(*(load_file(folder / TENSORS) for folder in newest))
    assert journal(run, "metrics.jsonl", "loss") == journal(whole, "metrics.jsonl", "loss")
    names = [{p.name for p in folder.iterdir()} - {"tensorboard"} for folder in (run, whole)]
    assert names[0] - beside == names[1]
    found, expected = (journal(folder, "evaluations.jsonl", "rsum") for folder in (run, whole))
    if not same_best:
        assert set(found) > set(expected)
        return
    assert found == expected
    models = [folder / "model" / "model.safetensors" for folder in (run, whole)]
    assert_same_bits(*map(load_file, models))
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, whole)]
    for key in ("rsum", "i2t", "t2i", "steps", "pairs", "final_loss"):
        assert results[0][key] == results[1][key], key
