"""``python -m vse_scale.planning.rank WHAT CONFIG OUT [PAIRS ...]``: one process that measures.

WHAT is ``computing``, on a world of its own, or ``network``, with the other ranks. The main rank
writes JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.nn import functional as F

from vse_scale.config import Config
from vse_scale.console import configure_logging
from vse_scale.objective.registry import objective_of
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.world.join import join_world, leave_world
from vse_scale.world.processes import World, all_gather

_WARM_UP, _STEPS = 2, 10
_DECODED = 8  # batches
_SMALL, _LARGE = 1024, 1 << 24  # bytes of a message, times the ranks
_SCORED = 1024  # pairs


def measure_computing(config: Config, world: World, sizes: list[int]) -> dict[str, Any]:
    """Return the seconds of steps of ``sizes`` pairs on one rank, and of a score in the loss."""
    steps = [_steps(config, world, pairs) for pairs in sizes]
    objective = objective_of(config.objective)
    images, captions = F.normalize(
        torch.randn(2, _SCORED, config.model.embed_dim, device=world.device), dim=2
    )
    ids = torch.arange(_SCORED, device=world.device)
    valid = torch.ones_like(ids, dtype=torch.bool)
    compute = partial(
        objective.compute, images, captions, ids=ids, valid=valid, phase=objective.final_phase
    )
    seconds = _time(compute, world)
    return {
        "steps": steps,
        "score_seconds": seconds / _SCORED**2,
        "start_seconds": steps[0]["started"] - psutil.Process().create_time(),
    }


def _steps(config: Config, world: World, pairs: int) -> dict[str, float]:
    """Time the decoding of a few batches alone, then training while the loader decodes."""
    data = config.data.model_copy(update={"global_batch": pairs, "last_batch": "drop"})
    trainer = Trainer(config.model_copy(update={"data": data}), world)
    # Of the last step, where everything trains.
    plan = trainer.schedule.at(trainer.schedule.total_steps - 1)
    timer, records, tokens, started = PhaseTimer(world.device), [], [], 0.0
    with trainer._loader(0) as loader:
        next(loader)
        began, cores = time.perf_counter(), time.process_time()
        decoded = sum(len(next(loader).images) for _ in range(_DECODED))
        decoding = (time.perf_counter() - began) / decoded
        decoding_cores = (time.process_time() - cores) / decoded
        for step in range(_WARM_UP + _STEPS):
            if step == _WARM_UP:
                began, cores = time.perf_counter(), time.process_time()
            batch = next(loader)
            tokens.append(batch.token_ids.shape[1])
            records.append(trainer.train_step(batch, step, plan, timer).seconds)
            started = started or time.time()
        seconds, busy = time.perf_counter() - began, time.process_time() - cores
    passes = ("forward", "objective", "backward")
    return {
        "pairs": pairs,
        "computing": median(
            sum(record.get(phase, 0.0) for phase in passes) for record in records[_WARM_UP:]
        ),
        "optimizer": median(record["optimizer"] for record in records[_WARM_UP:]),
        "cores": busy / seconds,
        "decoding_cores": _STEPS * len(batch.images) * decoding_cores / seconds,
        "image_seconds": decoding,
        "image_core_seconds": decoding_cores,
        "tokens": mean(tokens),
        "started": started,
    }


def measure_network(world: World) -> dict[str, Any]:
    """Return the seconds of a small and of a large message, by collective."""
    ranks = world.ranks
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    found: dict[str, dict[int, float]] = {}
    for size in (_SMALL, _LARGE):
        share = torch.zeros(size // 4, device=world.device)
        whole = torch.zeros(size // 4 * ranks, device=world.device)
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": partial(dist.all_reduce, whole),
            "all_gather": partial(all_gather, whole, share),
            "reduce_scatter": partial(scatter, share, whole),
        }
        for name, call in calls.items():
            found.setdefault(name, {})[whole.nbytes] = _time(call, world)
    return {"ranks": ranks, "collectives": found}


def _time(call: Callable[[], Any], world: World, repeats: int = 10) -> float:
    """Return the median of the seconds of ``call``."""
    seconds = []
    for _ in range(repeats + _WARM_UP):
        began = time.perf_counter()
        call()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[_WARM_UP:])


def main(what: str, path: str, out: str, *sizes: str) -> None:
    """Measure, and write the result as JSON."""
    config = Config.load(path)
    configure_logging(main=False)
    world = join_world(config.engine.timeout_seconds)
    if what == "network":
        found = measure_network(world)
    else:
        found = measure_computing(config, world, [int(size) for size in sizes])
    if world.main:
        Path(out).write_text(json.dumps(found))
    dist.barrier()
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
