"""Freezing: a frozen group does not move by a bit, and later trains as if it had just begun."""

from __future__ import annotations

import copy

import pytest
import torch

from vse_scale.config import OptimConfig
from vse_scale.objective import make_objective
from vse_scale.training.engine import Engine
from vse_scale.training.learned import LearnedNumbers
from vse_scale.training.optim import apply_plan, build_optimizer
from vse_scale.training.schedule import StepPlan
from vse_scale.world.processes import ALONE


def two_groups() -> dict[str, list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: [torch.nn.Parameter(torch.randn(3, 2, generator=generator))]
        for name in ("heads", "backbone.1")
    }


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_a_frozen_group_stands_still_and_then_equals_a_fresh_one(algorithm: str) -> None:
    config = OptimConfig(algorithm=algorithm, lr=0.1, weight_decay=0.3)
    groups = two_groups()
    start = groups["backbone.1"][0].detach().clone()
    optimizer = build_optimizer(groups, config, torch.device("cpu"))
    frozen = next(g for g in optimizer.param_groups if g["name"] == "backbone.1")
    frozen["frozen"] = True
    for seed in range(3):
        step(optimizer, seed)
    assert torch.equal(groups["backbone.1"][0], start)

    frozen["frozen"] = False
    step(optimizer, 7)
    fresh = two_groups()
    kind = torch.optim.AdamW if algorithm == "adamw" else torch.optim.SGD
    plain = kind([*fresh["heads"], *fresh["backbone.1"]], lr=0.1, weight_decay=0.3)
    step(plain, 7)
    assert torch.equal(groups["backbone.1"][0], fresh["backbone.1"][0])


def test_allocated_state_changes_no_update_and_goes_through_a_state_dict() -> None:
    groups = two_groups(), two_groups()
    optimizers = [build_optimizer(g, OptimConfig(lr=0.1), torch.device("cpu")) for g in groups]
    for parameters in groups[0].values():
        optimizers[0].allocate_state(parameters[0])
    saved = copy.deepcopy(optimizers[0].state_dict())
    assert all(
        state["step"] == 0 and not state["exp_avg"].any() for state in saved["state"].values()
    )
    optimizers[0].load_state_dict(saved)
    for optimizer in optimizers:
        step(optimizer, 0)
    for name in groups[0]:
        assert torch.equal(groups[0][name][0], groups[1][name][0])


def test_norms_and_biases_do_not_decay_where_that_is_asked() -> None:
    linear = torch.nn.Linear(3, 3)
    norm = torch.nn.LayerNorm(3)
    groups = {"heads": [*linear.parameters(), *norm.parameters()]}
    config = OptimConfig(algorithm="sgd", lr=0.5, weight_decay=0.1, decay_norms=False)
    optimizer = build_optimizer(groups, config, torch.device("cpu"))
    before = {p: p.detach().clone() for p in groups["heads"]}
    for parameter in before:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, start in before.items():
        factor = 0.95 if parameter is linear.weight else 1.0
        torch.testing.assert_close(parameter.detach(), start * factor)
    decays = [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    assert decays == [("heads", 0.0), ("heads", 0.1)]


def test_each_layer_learns_at_a_share_of_the_rate_above_it(small_model) -> None:
    config = OptimConfig(layer_decay=0.5, lr=1.0, text_scale=0.1, backbone_scale=0.01)
    optimizer = build_optimizer(
        small_model.parameter_groups(), config, torch.device("cpu"), small_model.layers_above()
    )
    plan = StepPlan(0, 0, "hardest", 1.0, {"heads": 1.0, "text": 0.1, "backbone": 0.01}, None)
    apply_plan(optimizer, plan)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(small_model.named_parameters())
    assert rates.keys() == set(named.values())
    expected = {
        "text.encoder.embeddings.word_embeddings.weight": 0.1 * 0.25,
        "text.encoder.encoder.layer.0.output.dense.weight": 0.1 * 0.5,
        "text.encoder.encoder.layer.1.output.dense.weight": 0.1,
        "image.backbone.conv1.weight": 0.01 * 0.25,
        "image.backbone.layer2.0.conv1.weight": 0.01 * 0.5,
        "image.backbone.layer3.0.conv1.weight": 0.01,
    }
    found = {name: rates[named[name]] for name in expected if name in named}
    assert len(found) == len(expected), sorted(named)
    assert found == pytest.approx(expected)
    heads = {rates[p] for p in small_model.parameter_groups()["heads"]}
    assert heads == {1.0}
    # One rate for all gives the groups that there have always been.
    whole = build_optimizer(
        small_model.parameter_groups(), OptimConfig(), torch.device("cpu"),
        small_model.layers_above(),
    )  # fmt: skip
    names = [name for name, own in small_model.parameter_groups().items() if own]
    assert [group["name"] for group in whole.param_groups] == names


class Kept:
    """Tensors of a checkpoint, in memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def get(self, name: str, shape: torch.Size, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        value = self._tensors[name]
        assert (value.shape, value.dtype) == (shape, dtype)
        return value


def stage_0(model, **optim: object) -> Engine:
    """An engine without DeepSpeed, whose optimizer is there."""
    config = OptimConfig.model_validate(optim)
    engine = Engine.__new__(Engine)
    engine.model, engine._stage, engine._average, engine._world = model, 0, None, ALONE
    engine.learned = LearnedNumbers(make_objective(), config)
    engine.optimizer = build_optimizer(
        model.parameter_groups(), config, torch.device("cpu"), model.layers_above()
    )
    for _, master in engine._masters():
        engine.optimizer.allocate_state(master)
    return engine


@pytest.mark.parametrize(("then", "now"), [(1.0, 0.8), (0.8, 1.0), (0.8, 0.5)])
def test_a_run_may_go_on_with_another_decay_of_layers(small_model, then, now) -> None:
    """`--resume-with optim.layer_decay=0.8`: a part's step count depends on freezing alone."""
    before = stage_0(small_model, layer_decay=then)
    counts = {name: 3.0 + n for n, name in enumerate(small_model.parameter_groups())}
    for name, master in before._masters():
        before.optimizer.state[master]["step"].fill_(counts[name])
    kept = {name: share.values.reshape(share.shape) for name, share in before.shares()}
    after = stage_0(small_model, layer_decay=now)
    after.restore(Kept(kept))
    assert {name for name, _ in after._masters()} <= counts.keys()
    for name, master in after._masters():
        assert after.optimizer.state[master]["step"] == counts[name]
