"""Memory by part, and the activations of a micro-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_traffic import work

from vse_scale.config import Config
from vse_scale.model.vse import VSEModel
from vse_scale.planning.activations import Activations, count_activations
from vse_scale.planning.memory import Batches, checkpoint_bytes, memory_bytes, state_bytes
from vse_scale.planning.traffic import Workload, step_bytes
from vse_scale.training.optim import build_optimizer

MADE = Activations(alone=10_000, with_gradients=12_000, with_bucket=13_000)


def test_memory_falls_with_the_stage_and_the_ranks() -> None:
    parts = [state_bytes(work(), stage, ranks=8) for stage in (0, 1, 2)]
    whole = 4 * 1000
    assert parts[0]["weights"] + parts[0]["moments"] + parts[0]["gradients"] == 4 * whole
    assert parts[2]["moments"] == 2 * whole / 8
    assert parts[2]["gradients"] == parts[2]["master"] == whole / 8


def test_what_does_not_train_costs_its_weights_alone(small_run: Path) -> None:
    """Parameters of the optimizer that the engine would be given, by their gradients' switch."""
    keys = ["model.image.frozen=true", "model.text.frozen=true"]
    config = Config.load(small_run, keys)
    model = VSEModel(config.model, 120, 0)
    optimizer = build_optimizer(model.parameter_groups(), config.optim, torch.device("cpu"))
    updated = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    planned = Workload.of(config, bfloat16=True)
    whole = 4 * sum(p.numel() for p in model.parameters())
    assert 0 < planned.trained == updated < planned.parameters
    inside = ("image.backbone.", "text.encoder.")
    heads = [
        sum(weight.numel() for weight in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(inside)
    ]
    assert planned.autocast_parameters == sum(heads)
    for stage, share in ((0, 1), (2, 2), (3, 2)):
        parts = state_bytes(planned, stage, ranks=2)
        assert parts["weights"] == whole * (1.5 if stage == 3 else 1)
        assert parts["gradients"] == parts["moments"] / 2 == 4 * updated / share
    assert step_bytes(planned, 2, 2)["weights"] == 4 * updated / 2
    assert checkpoint_bytes(planned, 0, 2)["copied"] == whole + 2 * 4 * updated


def test_gradient_descent_keeps_no_moments(small_run: Path) -> None:
    config = Config.load(small_run, ["optim.algorithm=sgd"])
    assert state_bytes(Workload.of(config, bfloat16=False), 0, ranks=1)["moments"] == 0


@pytest.mark.parametrize(
    ("stage", "cached", "most"),
    [
        (0, False, 12_000), (0, True, 4000 + 10_000),
        (2, False, 13_000), (2, True, 4000 + 10_000),
        (3, False, 1000 + 4000 + 10_000), (3, True, 1000 + 4000 + 10_000),
    ],
)  # fmt: skip
def test_parts_add_up_to_the_fullest_moment(stage: Any, cached: bool, most: int) -> None:
    """Gradients, the bucket for them and activations at their most are what was counted."""
    parts = memory_bytes(work(), Batches(MADE, 5.0, cached), stage, ranks=4)
    assert parts["gradients"] + parts["bucket"] + parts["activations"] == most
    assert parts["batches"] == 5.0


def test_the_update_may_be_the_fullest_moment() -> None:
    few = Batches(Activations(alone=10, with_gradients=4000, with_bucket=4000), 0.0, cached=False)
    assert memory_bytes(work(), few, 0, ranks=1)["activations"] == 0.0


def test_activations_are_what_autograd_saves(small_run: Path) -> None:
    """Real tensors that a real forward pass leaves for the backward pass, each storage once."""
    config = Config.load(small_run)
    torch.manual_seed(0)
    model = VSEModel(config.model, 120, 0).train()
    kept = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    images, pairs, tokens = 32, 64, 12
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(
            model.image_spec.normalise(pixels),
            torch.randint(0, 120, (pairs, tokens)),
            torch.arange(pairs) % tokens + 1,
            torch.rand(images, 1 + model.grid_cells),
        )
    gradients = 4 * sum(p.numel() for p in model.parameters())
    found = count_activations(config, pairs, tokens=tokens, bucket=gradients, cuda=False)
    # The first gradients come before the first activations go.
    assert 1.0 <= found.alone / sum(saved.values()) < 1.25
    assert found.alone <= found.with_gradients <= found.with_bucket <= found.alone + gradients


def test_activations_grow_with_the_pairs_and_shrink_with_checkpointing(small_run: Path) -> None:
    config = Config.load(small_run)

    def alone(config: Config, pairs: int, *, bfloat16: bool = False) -> int:
        return count_activations(config, pairs, tokens=12, bucket=0, bfloat16=bfloat16).alone

    few, more, most = (alone(config, pairs) for pairs in (64, 128, 192))
    assert most - more == pytest.approx(more - few, rel=0.02)
    assert 0.4 < alone(config, 192, bfloat16=True) / most < 0.9
    sparing = Config.load(small_run, ["engine.activation_checkpointing=true"])
    assert alone(sparing, 192) < 0.8 * most


def test_micro_batches_take_the_memory_of_one(small_run: Path) -> None:
    config = Config.load(small_run, ["data.global_batch=256"])
    whole = Batches.of(config, work(), 1, tokens=12, cuda=True, bfloat16=False)
    halves = Config.load(small_run, ["data.global_batch=256", "engine.micro_batches=2"])
    found = Batches.of(halves, work(), 1, tokens=12, cuda=True, bfloat16=False)
    assert found.cached
    assert found.activations.alone < 0.6 * whole.activations.alone
    assert found.waiting == whole.waiting == 6 * 128 * 32 * 32 * 3
