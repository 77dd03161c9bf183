"""The engine, at every ZeRO stage, against the published algorithm in plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import Job, assert_same_bits, distance, train_jobs, weights_of

from vse_scale.bench.plain import PlainTrainer
from vse_scale.config import Config
from vse_scale.data.loader import Batch, Loader
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.training.setup import make_plan

RATE, STEPS, EPOCH = 1e-5, 20, 5
# As published: the loss of epoch 1 is scaled by i / n.
PUBLISHED = (f"optim.lr={RATE}", "objective.ramp=true", "optim.drop_epochs=[15]")


@pytest.fixture(scope="module")
def ours(few_steps: Path, tmp_path_factory: pytest.TempPathFactory):
    jobs = {
        f"stage {stage}": Job(
            (*PUBLISHED, f"engine.zero_stage={stage}"), count=STEPS, every_state=True
        )
        for stage in range(4)
    }
    return train_jobs(few_steps, tmp_path_factory.mktemp("ours"), 2, jobs)


def plain_run(few_steps: Path, run, first: int, count: int):
    """Train plainly from the weights and moments that ``run`` had before step ``first``."""
    config = Config.load(few_steps, [*PUBLISHED])
    dataset = ShardDataset(config.data.path, "train")
    tokenizer = CaptionTokenizer.load(run.folder / "tokenizer")
    model = VSEModel(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    trainer = PlainTrainer(model, RATE, EPOCH)
    trainer.load(run.steps[first - 1]["state"] if first else run.start)
    loader = Loader(
        dataset, make_plan(config, dataset), tokenizer, model.input_spec, config.data,
        seed=config.run.seed, rank=0, ranks=1, device=torch.device("cpu"),
        start=divmod(first, EPOCH), grid_cells=model.grid_cells,
    )  # fmt: skip
    with loader as batches:
        steps = [plain_step(trainer, next(batches), n) for n in range(first, first + count)]
    weights = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    return steps, weights


def plain_step(trainer: PlainTrainer, batch: Batch, number: int) -> dict:
    loss = trainer.backward(batch, number)
    gradient = {
        n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None
    }
    trainer.update()
    return {"loss": float(loss), "gradient": gradient}


def learned(state: dict[str, torch.Tensor], names) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights_of(state).items() if name in names}


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_steps_from_identical_weights_are_the_plain_ones(few_steps: Path, ours, stage: int) -> None:
    run = ours[f"stage {stage}"]
    for step in (0, EPOCH - 1, EPOCH + 1, STEPS - 1):
        (expected,), weights = plain_run(few_steps, run, step, 1)
        found = run.steps[step]
        assert found["record"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        gradient = {name: found["gradient"][name] for name in expected["gradient"]}
        assert distance(expected["gradient"], gradient) < 1e-5
        assert distance(weights, learned(found["state"], weights)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_twenty_steps_across_the_thaw_stay_with_the_plain_ones(
    few_steps: Path, ours, stage: int
) -> None:
    run = ours[f"stage {stage}"]
    expected, weights = plain_run(few_steps, run, 0, STEPS)
    for found, plain in zip(run.steps, expected, strict=True):
        assert found["record"]["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert distance(weights, learned(run.steps[-1]["state"], weights)) < 1e-4
    moved = {n: v - run.start[n] for n, v in learned(run.steps[-1]["state"], weights).items()}
    plainly_moved = {name: value - run.start[name] for name, value in weights.items()}
    assert distance(plainly_moved, moved) < 2e-2  # Adam's first steps have the sign of noise


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_what_is_frozen_does_not_move_by_a_bit(ours, stage: int) -> None:
    run = ours[f"stage {stage}"]

    def of_backbone(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: v for n, v in state.items() if ".image.backbone." in n or n == "step.backbone.1"}

    for step in run.steps[:EPOCH]:
        assert_same_bits(of_backbone(step["state"]), of_backbone(run.start))
    # The first unfrozen step has a loss scaled by 0: the weights decay, as published.
    assert run.steps[EPOCH]["state"]["step.backbone.1"] == 1
    assert run.steps[-1]["state"]["step.backbone.1"] == STEPS - EPOCH
    assert run.steps[-1]["state"]["step.heads"] == STEPS
    assert distance(*(weights_of(of_backbone(s)) for s in (run.start, run.steps[-1]["state"]))) > 0
