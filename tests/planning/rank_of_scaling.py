"""One rank that counts what a training step moves between ranks, and what it keeps in memory.

Usage: rank_of_scaling.py CONFIG OUT FOLDER

Rank 0 writes JSON by ZeRO stage: ``sent``, bytes that leave a rank by collective, if it sends as a
ring does; ``kept``, bytes of all tensors when the update begins; ``peak``, the most that torch's
allocator held during a step, temporaries within operators included; ``tokens`` of the longest
caption of that step; and the record's ``bytes_sent``.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  # before the collectives are replaced, so that all users are known
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from vse_scale.bench.traffic import cpu_rise
from vse_scale.config import Config
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.world.join import World, join_world

# By name: the argument that holds this rank's input, and the share of it that a ring sends, times
# the number of ranks.
COLLECTIVES = {
    "all_reduce": (0, lambda ranks: 2 * (ranks - 1) / ranks),
    "all_gather_into_tensor": (1, lambda ranks: ranks - 1),
    "all_gather_single": (1, lambda ranks: ranks - 1),
    "reduce_scatter_tensor": (1, lambda ranks: (ranks - 1) / ranks),
    "reduce_scatter_single": (1, lambda ranks: (ranks - 1) / ranks),
}
STEPS = 3

sent: Counter[str] = Counter()
depth = 0  # one spelling of a collective may call another


def count(name: str) -> None:
    original = getattr(dist, name, None)
    if original is None:
        return
    position, share = COLLECTIVES[name]

    def counting(*arguments: Any, **options: Any) -> Any:
        global depth
        if depth == 0:
            named = [options[key] for key in ("tensor", "input_tensor", "input") if key in options]
            given = arguments[position] if len(arguments) > position else named[0]
            sent[name] += given.nbytes * share(dist.get_world_size())
        depth += 1
        try:
            return original(*arguments, **options)
        finally:
            depth -= 1

    for module in list(sys.modules.values()):
        for key, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, key, counting)


def tensors() -> int:
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def count_steps(config: Config, world: World) -> dict[str, Any]:
    gc.collect()
    others = tensors()
    trainer = Trainer(config, world)
    update = trainer.engine.step
    kept = 0

    def look(plan: Any) -> float:
        nonlocal kept
        gc.collect()
        kept = tensors()
        return update(plan)

    trainer.engine.step = look
    timer = PhaseTimer(world.device)
    with trainer._loader(0) as batches:
        for step in range(STEPS):
            sent.clear()
            batch, plan = next(batches), trainer.schedule.at(step)
            gc.collect()
            before = tensors() - others
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                record = trainer.train_step(batch, step, plan, timer)
    return {
        "sent": dict(sent), "kept": kept - others, "bytes_sent": record.bytes_sent,
        "peak": before + cpu_rise(profiler), "tokens": batch.token_ids.shape[1],
    }  # fmt: skip


def main(path: str, out: str, folder: str) -> None:
    results = {}
    world = None
    for stage in range(4):
        overrides = [f"engine.zero_stage={stage}", f"run.dir={folder}/{stage}"]
        config = Config.load(path, overrides)
        world = world or join_world(config.engine.timeout_seconds)
        results[stage] = count_steps(config, world)
    assert world is not None
    if world.main:
        Path(out).write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for name in COLLECTIVES:
        count(name)
    main(*sys.argv[1:])
