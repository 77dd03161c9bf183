"""One rank that trains some steps and keeps what every one of them did.

Usage: rank_of_training.py CONFIG OUT FIRST COUNT [section.key=value ...]

Rank 0 writes to OUT a list with, for each step: its loss, and by parameter name the global gradient
and the updated weights, whole whatever the ZeRO stage.
"""

from __future__ import annotations

import sys

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from vse_scale.config import Config
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.training.world import join_world


def main(path: str, out: str, first: int, count: int, overrides: list[str]) -> None:
    config = Config.load(path, overrides)
    world = join_world(config.engine.timeout_seconds)
    trainer = Trainer(config, world)
    names = dict(trainer.engine.model.named_parameters())
    sharded = config.engine.zero_stage > 0
    kept = []
    original = trainer.engine.step

    def step_and_look(plan):
        gradients = {
            name: (safe_get_full_grad(p) if sharded else p.grad.clone())
            for name, p in names.items()
            if p.grad is not None or sharded
        }
        kept.append({"gradient": {n: g.cpu() for n, g in gradients.items() if g is not None}})
        return original(plan)

    trainer.engine.step = step_and_look
    timer = PhaseTimer(world.device)
    with trainer._loader(first) as batches:
        for step in range(first, first + count):
            plan = trainer.schedule.at(step)
            record = trainer.train_step(next(batches), step, plan, timer)
            weights = {
                name: (safe_get_full_fp32_param(p) if sharded else p.detach()).clone()
                for name, p in names.items()
            }
            kept[-1] |= {
                "loss": record["loss"],
                "norm": record["gradient_norm"],
                "weights": weights,
            }
    if world.main:
        torch.save(kept, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
