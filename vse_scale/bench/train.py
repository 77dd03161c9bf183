"""Stage ``train``: pairs per second end to end, from real shards through loader and trainer.

This project runs as a user runs it: ``vse-scale train`` through the launcher, two ranks or one per
GPU, started anew in every turn. Wall time is taken between the timed steps, so that everything
between steps counts. It is measured in the published mode, with one caption each time that an image
is decoded, and with five captions per image; both count pairs, in global batches of the same size.
The peer is the published training in one process of plain torch, with `DataLoader` workers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vse_scale.bench.comparison import Implementation, Sample, fastest, powers_of_two, take_turns
from vse_scale.bench.job import Job
from vse_scale.bench.peers import opencv_batches
from vse_scale.bench.rows import Row, make_rows
from vse_scale.bench.setting import changed, open_split, ready
from vse_scale.bench.step import PARTS, PEER, case_of, our_name, plain_implementations, plain_run
from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.run.folder import RunFolder

CAPTIONS = 5
_UNTIMED = 3  # steps before the timed ones
_NEVER = 10**9


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows of one comparison: the peers, and both of our modes.

    A rehearsal has one of each.
    """
    ranks = torch.cuda.device_count() or 2
    pairs = changed(ready(job), data={"mode": "pairs", "captions_per_image": 1})
    pairs.check_layout(ranks)
    shared: dict[str, Any] = {"config": pairs, "cores": job.cores, "steps": 2 if job.small else 5}
    shared = {**shared, "workers": 1} if job.small else tuned(job, shared)
    implementations = plain_implementations(job, plain, shared)
    own = {"scratch": job.scratch, "ranks": ranks, "steps": shared["steps"]}
    one = Implementation(f"{our_name(job)}, one caption per image", ours, {"config": pairs, **own})
    implementations.append(one)
    if open_split(job.config, "train").captions_per_sample.min() >= CAPTIONS:
        # Whole images on every rank, so the batch may have fewer pairs than the others'.
        unit = ranks * CAPTIONS
        batch = max(unit, pairs.data.global_batch // unit * unit)
        own_data = {"mode": "images", "captions_per_image": CAPTIONS, "global_batch": batch}
        name = f"{our_name(job)}, five captions per image"
        if batch != pairs.data.global_batch:
            name += f", {batch} pairs"
        implementations.append(
            Implementation(name, ours, {"config": changed(pairs, data=own_data), **own})
        )
    if job.small:
        del implementations[1:-1]
    results = take_turns(implementations, job.repeats, small=job.small)
    peer = f"{shared['cores']} threads and {shared['workers']} workers"
    case = f"{case_of(pairs)}, {ranks} ranks; the peer has {peer}"
    yield make_rows(job, "train", case, results, peer=PEER, unit="pairs/s")


def tuned(job: Job, shared: dict[str, Any]) -> dict[str, Any]:
    """Return ``shared`` with the fastest numbers of threads and workers for the peer.

    First 1, 2, 4 and so on threads, up to the cores, are timed with as many workers as cores; then
    the same numbers of workers with the fastest number of threads. Threads of OpenMP without a core
    of their own wait for each other most of the time.
    """
    counts = powers_of_two(job.cores)
    found = {**shared, "workers": counts[-1]}
    for key, what in (("cores", "threads"), ("workers", "workers")):
        found[key] = fastest({
            count: Implementation(
                f"{count} {what}",
                plain,
                {**found, key: count, "device": job.device, "kind": {}},
            )
            for count in counts
        })  # fmt: skip
    log.info("the peer is fastest with %(cores)d threads and %(workers)d workers", found)
    return found


def ours(config: Config, scratch: Path, ranks: int, steps: int) -> Iterator[Sample]:
    """Run the command for a few steps in every turn, in a new folder."""
    folder = scratch / f"run-{config.data.mode}"
    total = _UNTIMED + steps
    limited = changed(
        config,
        run={"dir": str(folder), "checkpoint_epochs": _NEVER},
        train={"max_steps": total, "epochs": _NEVER},
        eval={"every_epochs": _NEVER},
    )
    path = scratch / f"run-{config.data.mode}.yaml"
    path.write_text(limited.to_yaml())
    # The launcher divides the cores over the ranks, unless this is set.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "vse_scale.cli", "train", "--config", str(path)]
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        done = subprocess.run(
            # Without restarts, since one would count as training time.
            [*command, "--ranks", str(ranks), "--max-restarts", "0"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"vse-scale train left with {done.returncode}:\n{done.stderr}")
        yield timed_steps(folder, total, steps, config.data.global_batch)


def timed_steps(folder: Path, total: int, steps: int, pairs: int) -> Sample:
    """Return the last ``steps`` of a run's ``total``, by the wall times in TensorBoard's files."""
    run = RunFolder(folder)
    ended = clock(run.tensorboard_folder)
    phases = dict.fromkeys(PARTS.values(), 0.0)
    for record in run.steps()[-steps:]:
        for phase, part in PARTS.items():
            phases[part] += record.seconds.get(phase, 0.0)
    return Sample(steps * pairs, ended[total - 1] - ended[total - 1 - steps], phases)


def clock(folder: Path) -> dict[int, float]:
    """Return the wall time in seconds at which each step's record was written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    times: dict[int, float] = {}
    for file in folder.iterdir():
        for event in EventFileLoader(str(file)).Load():
            if any(value.tag == "loss" for value in event.summary.value):
                times[event.step] = event.wall_time
    return times


def plain(
    config: Config,
    cores: int,
    steps: int,
    workers: int,
    device: torch.device,
    kind: dict[str, Any],
) -> Iterator[Sample]:
    """Train in plain torch, with ``cores`` threads beside the workers."""
    trainer, recipe = plain_run(config, cores, device, kind)
    batches = opencv_batches(recipe, workers=workers, device=device)
    while True:
        waited, began = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            float(trainer.step(batch, 0))  # the published code logs every loss
        seconds = time.perf_counter() - began
        phases = {"data": waited, "all else": seconds - waited}
        yield Sample(steps * config.data.global_batch, seconds, phases)
