"""Turns on several cores, by the clock: threads of either code, or several ranks of this project.

They want a machine without other work. The processor's seconds are counted beside the clock's.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

import psutil
import torch

from vse_scale.bench.comparison import Sample
from vse_scale.bench.published import Setting
from vse_scale.bench.published_training import PublishedTraining
from vse_scale.training.timing import PhaseTimer
from vse_scale.training.trainer import Trainer
from vse_scale.world.join import free_port, join_world
from vse_scale.world.place import Place

PROCESSOR = "processor"  # among a sample's phases: seconds of all processes and threads


def theirs_on_cores(setting: Setting, most: int, threads: int) -> Iterator[Sample]:
    """Train by the published code in one process of so many threads, ``most`` steps in all."""
    torch.set_num_threads(threads)
    training = PublishedTraining(setting, most)
    yield from _timed(setting, training.step, [psutil.Process()])


def ours_on_cores(setting: Setting, name: str, ranks: int, threads: int) -> Iterator[Sample]:
    """Train by the `Trainer` in ``ranks`` processes of so many threads each."""
    place = Place(ranks=ranks, local_ranks=ranks, master=("127.0.0.1", free_port()))
    others = [
        multiprocessing.get_context("spawn").Process(
            target=_follow,
            args=(setting, name, replace(place, rank=rank, local_rank=rank), threads),
            daemon=True,
        )
        for rank in range(1, ranks)
    ]
    for other in others:
        other.start()
    processes = [psutil.Process(), *(psutil.Process(other.pid) for other in others)]
    yield from _timed(setting, _steps(setting, name, place, threads), processes)


def _follow(setting: Setting, name: str, place: Place, threads: int) -> None:
    """Train as a further rank, until the process is ended."""
    step = _steps(setting, name, place, threads)
    while True:
        step()


def _steps(setting: Setting, name: str, place: Place, threads: int) -> Callable[[], object]:
    """Return a function that trains a step as the rank at ``place``."""
    os.environ.update(place.variables)
    config = setting.config(name)
    trainer = Trainer(config, join_world(config.engine.timeout_seconds))
    torch.set_num_threads(threads)
    timer, numbers, batches = PhaseTimer(torch.device("cpu")), count(), trainer._loader(0)

    def step() -> object:
        number = next(numbers)
        return trainer.train_step(next(batches), number, trainer.schedule.at(number), timer)

    return step


def _timed(
    setting: Setting, step: Callable[[], object], processes: Sequence[psutil.Process]
) -> Iterator[Sample]:
    while True:
        began, used = time.perf_counter(), _processor_seconds(processes)
        for _ in range(setting.steps):
            step()
        seconds = time.perf_counter() - began
        used = _processor_seconds(processes) - used
        yield Sample(setting.steps * setting.batch, seconds, {PROCESSOR: used})


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
