"""Stage ``step``: one training step on a batch in memory, beside the published one in plain torch.

The batch, the weights and the encoders are the same. The published pooling runs a recurrent network
over the positions of every sample; an implementation that is plain except for the pooling shows
that cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from vse_scale.bench.comparison import Implementation, Result, Sample, take_turns
from vse_scale.bench.job import Job
from vse_scale.bench.peers import Recipe
from vse_scale.bench.plain import PlainTrainer
from vse_scale.bench.rows import Row, make_rows
from vse_scale.bench.setting import changed, ready, recipe_of
from vse_scale.config import Config
from vse_scale.data.loader import Batch, Loader
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec
from vse_scale.model.vse import VSEModel
from vse_scale.planning.flops import count_flops
from vse_scale.training.engine import autocast_dtype
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.world.join import join_world

PEER = "plain torch, float32"
_TOKENS = 20  # of a long caption; captions are a small part of the operations

# Phases of the table by those of a step's record. Gradients are reduced during the backward pass.
PARTS = {
    "data": "data",
    "forward": "forward+backward",
    "objective": "forward+backward",
    "backward": "forward+backward",
    "communication": "exchange+optimizer",
    "optimizer": "exchange+optimizer",
}


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows of one batch of pairs."""
    config = changed(
        ready(job),
        data={"mode": "pairs", "captions_per_image": 1},
        engine={"micro_batches": 1},
    )
    shared = {"config": config, "cores": job.cores, "steps": 1 if job.small else 3}
    implementations = [
        *plain_implementations(job, plain, shared),
        Implementation(our_name(job), ours, shared),
    ]
    results = take_turns(implementations, job.repeats, small=job.small)
    yield make_rows(job, "step", case_of(config), results, peer=PEER, unit="pairs/s")
    if job.device.type == "cuda":  # to compare with the device's peak, and stage "kernels"
        each = count_flops(config, tokens=_TOKENS) / 1e12
        computed = {
            name: Result([each * value for value in result.values], -1, {})
            for name, result in results.items()
        }
        yield make_rows(job, "step", case_of(config), computed, peer=PEER, unit="TFLOP/s")


def case_of(config: Config) -> str:
    """Name the model, the pixels and the batch."""
    image = config.model.image
    return f"{image.backbone}, {image.size} px, {config.data.global_batch} pairs"


def our_name(job: Job) -> str:
    """Return our implementation's name, with the dtype of the engine."""
    dtype = autocast_dtype(job.config, job.device)
    return f"vse_scale, {'float32' if dtype is None else 'bfloat16'}"


def plain_implementations(job: Job, turns: Any, shared: dict[str, Any]) -> list[Implementation]:
    """Return the plain ones: as published, with our pooling, and on a GPU in bfloat16.

    A rehearsal has only the first.
    """
    kinds: dict[str, dict[str, Any]] = {
        PEER: {},
        "plain torch, our pooling": {"our_pooling": True},
    }
    if job.device.type == "cuda":
        kinds["plain torch, bfloat16"] = {"dtype": torch.bfloat16}
    given = {**shared, "device": job.device}
    found = [Implementation(name, turns, {**given, "kind": kind}) for name, kind in kinds.items()]
    return found[:1] if job.small else found


def ours(config: Config, cores: int, steps: int) -> Iterator[Sample]:
    """Train by the `Trainer` itself, one rank, on one batch over and over."""
    trainer = Trainer(config, join_world(config.engine.timeout_seconds))
    torch.set_num_threads(cores)
    model, device = trainer.engine.model, trainer.world.device
    start = str(config.model.init_from)
    batch = in_memory(recipe_of(config, start, model.image_spec.size, model.grid_cells), device)
    timer = PhaseTimer(device)
    number = 0
    while True:
        phases = dict.fromkeys(PARTS.values(), 0.0)
        began = time.perf_counter()
        for _ in range(steps):
            record = trainer.train_step(batch, number, trainer.schedule.at(number), timer)
            number += 1
            for phase, part in PARTS.items():
                phases[part] += record.seconds.get(phase, 0.0)
        del phases["data"]  # in memory
        seconds = time.perf_counter() - began
        yield Sample(steps * config.data.global_batch, seconds, phases)


def plain(
    config: Config, cores: int, steps: int, device: torch.device, kind: dict[str, Any]
) -> Iterator[Sample]:
    """Train in plain torch on one batch over and over."""
    trainer, recipe = plain_run(config, cores, device, kind)
    batch = in_memory(recipe, device)
    while True:
        began = time.perf_counter()
        for _ in range(steps):
            float(trainer.step(batch, 0))  # the published code logs every loss
        yield Sample(steps * config.data.global_batch, time.perf_counter() - began)


def in_memory(recipe: Recipe, device: torch.device) -> Batch:
    """Return the first batch of a plan."""
    spec = InputSpec(
        ImageSpec.preset("imagenet", recipe.size), max_tokens=recipe.config.max_caption_tokens
    )
    with Loader(
        recipe.dataset, recipe.plan, recipe.tokenizer, spec, recipe.config,
        seed=recipe.seed, rank=0, ranks=1, device=device, grid_cells=recipe.grid_cells,
    ) as batches:  # fmt: skip
        return replace(next(batches), wait_seconds=0.0)


def plain_run(
    config: Config, cores: int, device: torch.device, kind: dict[str, Any]
) -> tuple[PlainTrainer, Recipe]:
    """Return the plain trainer of ``kind``, and the ingredients of its batches."""
    start = str(config.model.init_from)
    model = VSEModel.from_pretrained(start).to(device)
    recipe = recipe_of(config, start, model.image_spec.size, model.grid_cells)
    torch.set_num_threads(cores)
    trainer = PlainTrainer(
        model, config.optim.lr, recipe.plan.steps_per_epoch, warmup_epochs=0, **kind
    )
    return trainer, recipe
