"""One rank that trains some steps of several recipes, one after the other.

Usage: rank_of_recipes.py JOBS.json

A job has ``recipe``, ``overrides``, ``first`` (the step to begin with; None: the last of the first
epoch), ``count``, ``save`` and ``evaluate``. Rank 0 writes ``out``: the records of its steps, how
far some parameters of each group moved, the bytes of a checkpoint and the recalls.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch.distributed as dist

from vse_scale.config import Config
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.training.validation import validate
from vse_scale.training.writer import Writer
from vse_scale.world.join import World, join_world


def main(path: str) -> None:
    jobs = json.loads(Path(path).read_text())
    world = join_world(300.0)
    for job in jobs:
        run_job(job, world)
        # What the next one needs as well: gigabytes.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    dist.barrier()
    dist.destroy_process_group()


def run_job(job: dict, world: World) -> None:
    trainer = Trainer(Config.load(job["recipe"], job["overrides"]), world)
    first = trainer.plan.steps_per_epoch - 1 if job["first"] is None else job["first"]
    groups = {
        name: parameters[:4] for name, parameters in trainer.engine.model.parameter_groups().items()
    }
    before = {name: [p.detach().clone() for p in group] for name, group in groups.items()}
    timer, records = PhaseTimer(world.device), []
    with trainer._loader(first) as batches:
        for step in range(first, first + job["count"]):
            record = trainer.train_step(next(batches), step, trainer.schedule.at(step), timer)
            records.append(record.to_json())
    moved = {
        name: max(
            float((p.detach() - old).abs().max())
            for p, old in zip(group, before[name], strict=True)
        )
        for name, group in groups.items()
        if group
    }
    found = {"records": records, "moved": moved}
    if job["save"]:
        with Writer(trainer.checkpoints, world, 600, lambda written: None) as writer:
            writer.begin(trainer.engine, trainer.state)
        newest = trainer.checkpoints.newest()
        assert newest is not None
        found["bytes"] = sum(file.stat().st_size for file in newest[0].iterdir())
    if job["evaluate"]:
        record, _ = validate(
            trainer.engine, trainer.tokenizer, trainer.validation, trainer.config, world,
            step=0, epoch=0,
        )  # fmt: skip
        found["recalls"] = [record.recalls[direction]["r1"] for direction in ("i2t", "t2i")]
    trainer.engine.deepspeed.destroy()
    if world.main:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
