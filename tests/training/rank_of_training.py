"""One rank that trains some steps of several jobs, and keeps what every one of them did.

Usage: rank_of_training.py CONFIG JOBS.json

A job is a run of its own, as in ``launching.Job``. Rank 0 writes to its ``out`` what
``launching.Trained`` describes.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from vse_scale.config import Config
from vse_scale.training.snapshot import Snapshot
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.training.watch.observers import Observers
from vse_scale.world.join import World, join_world


def main(path: str, jobs_path: str) -> None:
    with open(jobs_path) as file:
        jobs = json.load(file)
    world = join_world(Config.load(path).engine.timeout_seconds)
    for job in jobs:
        run_job(path, job, world)
    dist.barrier()
    dist.destroy_process_group()


def run_job(path: str, job: dict, world: World) -> None:
    trainer = Trainer(Config.load(path, job["overrides"]), world)
    first = trainer.state.step if job["first"] is None else job["first"]
    steps: list[dict] = []
    look_at_gradients(trainer, steps)
    poison = Poison(trainer, rank_poisoned=world.rank == world.ranks - 1)
    timer = PhaseTimer(world.device)
    snapshot = Snapshot(world, 600)
    start = whole_state(trainer, snapshot)
    with trainer._loader(first) as batches:
        for step in range(first, first + job["count"]):
            batch = next(batches)
            poison.active = step in job["poisoned"]
            record = trainer.train_step(batch, step, trainer.schedule.at(step), timer)
            pairs = torch.stack([batch.image_ids, batch.token_ids.sum(1)], dim=1)
            parts = [None] * world.ranks
            dist.all_gather_object(parts, pairs)
            steps[-1] |= {"record": record.to_json(), "pairs": torch.cat(parts)}
            if job["every_state"] or step == first + job["count"] - 1:
                steps[-1]["state"] = whole_state(trainer, snapshot)
    trainer.state = replace(trainer.state, step=first + job["count"])
    if job["save"]:
        trainer.observers = Observers(trainer.config, world, next_step=0, total_steps=0)
        with closing(trainer.observers), trainer.writer:
            trainer.writer.begin(trainer.engine, trainer.state)
    if world.main:
        torch.save({"first": first, "start": start, "steps": steps}, job["out"])


def whole_state(trainer: Trainer, snapshot: Snapshot) -> dict[str, torch.Tensor]:
    snapshot.take(trainer.engine.shares())
    return {name: value.clone() for name, value in snapshot.whole().items()}


def look_at_gradients(trainer: Trainer, steps: list[dict]) -> None:
    """Add the whole global gradient to ``steps`` before each update."""
    sharded = trainer.config.engine.zero_stage > 0
    update = trainer.engine.step

    def look_and_update(plan):
        gradients = {
            name: safe_get_full_grad(parameter) if sharded else parameter.grad
            for name, parameter in trainer.engine.model.named_parameters()
        }
        steps.append({"gradient": {n: g.clone() for n, g in gradients.items() if g is not None}})
        return update(plan)

    trainer.engine.step = look_and_update


class Poison:
    """Makes the gradient of one rank's captions infinite, while ``active``."""

    def __init__(self, trainer: Trainer, *, rank_poisoned: bool) -> None:
        self.active = False
        encode = trainer._encode

        def encode_and_poison(batch):
            images, captions = encode(batch)
            if self.active and rank_poisoned and captions.requires_grad:
                captions.register_hook(lambda gradient: gradient * torch.inf)
            return images, captions

        trainer._encode = encode_and_poison


if __name__ == "__main__":
    main(*sys.argv[1:])
