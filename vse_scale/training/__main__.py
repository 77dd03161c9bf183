"""``python -m vse_scale.training``: the process that a launcher starts once per rank."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from vse_scale.errors import LaunchError, UserError
from vse_scale.training.contract import EXIT_INTERRUPTED, EXIT_STOPPED, LAUNCHER, MESSAGE_SECONDS
from vse_scale.training.failures import rank_is_gone, refuse
from vse_scale.training.parent import die_with_parent
from vse_scale.world.devices import choose_slice
from vse_scale.world.place import Place, find_place, is_main
from vse_shards.masking import masked
from vse_shards.terminal import tell


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Leave as after any other mistake; all ranks were given the same command line."""
        if is_main(os.environ):
            told = f"vse-scale: error: {' '.join(message.split())}; see {self.prog} --help"
            tell(masked(told), sys.stderr)
        sys.exit(UserError.exit_code)


def main() -> int:
    """Read the command line, join the other ranks and train; return the exit code."""
    parser = _Parser("python -m vse_scale.training", description="Train a retrieval model.")
    parser.add_argument("--config", required=True, metavar="FILE.yaml")
    parser.add_argument(
        "--resume-with", action="append", default=[], metavar="KEY=VALUE",
        help="a setting that the run changes from its newest checkpoint on, as optim.lr=1e-4",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    # DeepSpeed's launcher passes it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    given = parser.parse_intermixed_args()
    return run_rank(given.config, given.overrides, given.resume_with, debug=given.debug)


def run_rank(
    config: str, overrides: list[str], resume_with: Sequence[str] = (), *, debug: bool = False
) -> int:
    """Train as one of the processes that a launcher started; return the exit code.

    Args:
        config: the configuration's file, or a recipe's name.
        overrides: of its keys, key=value.
        resume_with: further ones, which the run changes from its newest checkpoint on.
        debug: whether errors of the user's are raised, where else they are one line.
    """
    main_rank = is_main(os.environ)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop_before_the_first_step)
    try:
        place = find_place(os.environ)
        _settle(place)
        return _train(config, overrides, resume_with, place)
    except UserError as error:
        if debug:
            raise
        if refuse(error):
            return error.exit_code
        if not main_rank and not isinstance(error, LaunchError):
            # The main rank reports what every rank found; afterwards this one reports its own.
            time.sleep(MESSAGE_SECONDS)
            if _main_rank_has_left():
                return error.exit_code
        tell(f"vse-scale: error: {masked(str(error))}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if main_rank:
            tell("ended at once; the same command goes on from the newest checkpoint", sys.stderr)
        return EXIT_INTERRUPTED
    except RuntimeError as error:
        if debug or not rank_is_gone(error):
            raise
        from vse_scale.console import log

        log.error(
            "another rank died, or was silent for engine.timeout_seconds; the same command goes "
            "on from the newest checkpoint (%s)", str(error).splitlines()[0],
        )  # fmt: skip
        return 1


def _settle(place: Place) -> None:
    """Prepare this process for its place, before torch is loaded."""
    if place.idle_tasks > 1:
        raise LaunchError(
            f"this SLURM job has {place.idle_tasks} tasks, and this process is its shell, none of "
            "them; start it by srun, or train on this machine alone by vse-scale train"
        )
    if LAUNCHER in os.environ:
        die_with_parent(int(os.environ[LAUNCHER]))
    elif place.launcher_is_parent:
        die_with_parent(os.getppid())
    choose_slice(os.environ, place.local_rank)
    # Decided at the import of its library, for processes that write into one folder: a rank serves
    # its own metrics, and its gauges do not work that way.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


def _train(config: str, overrides: list[str], resume_with: Sequence[str], place: Place) -> int:
    # Imported here: a mistyped option should not wait for torch.
    from vse_scale.console import configure_logging, log
    from vse_scale.run.extras import require
    from vse_scale.training.alive import long_work

    configure_logging(main=place.rank == 0)
    require("train", "training")
    log.info("loading torch, DeepSpeed and DALI")
    with long_work("loading torch, DeepSpeed and DALI"):
        from vse_scale.training.setup import load_config
        from vse_scale.training.trainer import train
        from vse_scale.world.join import leave_world

    code = train(load_config(config, overrides, place.ranks, resume_with))
    leave_world()
    return code


def _main_rank_has_left() -> bool:
    """Return whether the main rank, which this one had joined, is there no more.

    Not every launcher ends the other ranks then, and a line from each of them would be the same.
    """
    import torch.distributed as dist

    master = find_place(os.environ).master
    if master is None or not dist.is_initialized():
        return False
    try:
        socket.create_connection(master, timeout=2.0).close()
    except OSError:
        return True
    return False


def _stop_before_the_first_step(number: int, frame: FrameType | None) -> None:
    """Leave at once: there is nothing to save, and the same command starts as it would have."""
    if is_main(os.environ):
        os.write(sys.stderr.fileno(), b"stopped before the first step; the same command goes on\n")
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    sys.exit(main())
