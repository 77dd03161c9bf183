"""``vse-scale train``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vse_scale.commands.common import Overrides
from vse_scale.console import heartbeat, log
from vse_scale.errors import LaunchError
from vse_scale.run.extras import require
from vse_shards.terminal import tell_page

if TYPE_CHECKING:
    from vse_scale.config import Config

_COUNT_SECONDS = 60.0  # a grid of thousands of cells takes many minutes


def train(
    config: Annotated[
        Path,
        typer.Option(help="the run's configuration: a YAML file, or a recipe's name, as small"),
    ],
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per GPU, or one")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="restarts without a new checkpoint before it gives up")
    ] = 3,
    resume_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="a setting that the run changes from its newest checkpoint on, as optim.lr=1e-4",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved configuration; start nothing")
    ] = False,
) -> None:
    """Train a model on this machine, and restart after a crash.

    DeepSpeed's launcher starts the ranks. The same command goes on from the newest checkpoint.
    Under torchrun, srun or mpirun it is one of the ranks, and nothing is restarted.
    """
    from vse_scale.world.place import find_place

    arguments, changed = overrides or [], resume_with or []
    place = find_place(os.environ)
    if place.launched and not dry_run:
        if ranks not in (None, place.ranks):
            raise LaunchError(
                f"--ranks is {ranks}, and a launcher has started this as rank {place.rank} of "
                f"{place.ranks}; leave --ranks out"
            )
        from vse_scale.training.__main__ import run_rank

        raise typer.Exit(run_rank(str(config), arguments, changed))
    log.info("checking the configuration, the dataset and the run's folder")
    from vse_scale.training.setup import check_run, load_config

    processes = ranks or _one_per_gpu()
    checked = load_config(str(config), arguments, processes, changed)
    if dry_run:
        from vse_scale.training.dry_run import describe_run

        tell_page(describe_run(checked).rstrip("\n"))
        return
    if place.idle_tasks > 1:
        log.info(
            "this SLURM job has %d tasks, and this is its shell: training on this machine alone; "
            "srun vse-scale train ... starts a rank per task", place.idle_tasks,
        )  # fmt: skip
    require("train", "vse-scale train")
    check_run(checked, processes)
    options = [f"--resume-with={setting}" for setting in changed]
    command = ["--config", str(config), *options, *arguments]
    raise typer.Exit(_supervised(checked, command, processes, max_restarts))


def _supervised(config: Config, command: list[str], ranks: int, max_restarts: int) -> int:
    from vse_scale.training.failures import OutOfMemory
    from vse_scale.training.supervisor import Supervisor

    try:
        return Supervisor(config, command, ranks=ranks, max_restarts=max_restarts).run()
    except OutOfMemory as error:
        raise OutOfMemory(error.what, error.remedy, _parts(config, ranks)) from None


def _parts(config: Config, ranks: int) -> str | None:
    """Say what takes a rank's memory; None for a model of the user's that cannot be counted."""
    import torch

    from vse_scale.planning.memory import memory_line
    from vse_scale.planning.page import TOKENS

    try:
        with heartbeat("counting what takes the memory"), _at_most(_COUNT_SECONDS):
            return memory_line(config, ranks, cuda=torch.cuda.is_available(), tokens=TOKENS)
    except Exception:  # the line must come, whatever the count meets
        return None


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after ``seconds``, for the main thread alone."""

    def stop(*_: object) -> None:
        raise TimeoutError

    # A callback of a garbage collection drops it, and Python would print that: once more, then.
    unraisable = sys.unraisablehook
    former = signal.signal(signal.SIGALRM, stop)
    sys.unraisablehook = lambda told: None if told.exc_type is TimeoutError else unraisable(told)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        sys.unraisablehook = unraisable


def _one_per_gpu() -> int:
    import torch

    from vse_scale.world.devices import count_slices

    return max(1, torch.cuda.device_count(), count_slices(os.environ))
