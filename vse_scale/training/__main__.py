"""``python -m vse_scale.training``: the process that a launcher starts once per rank."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from types import FrameType

from vse_scale.errors import UserError
from vse_scale.training.contract import EXIT_STOPPED, MESSAGE_SECONDS

# Words of gloo's errors when another rank is gone; NCCL ends the process by itself.
_RANK_IS_GONE = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer")


def main() -> int:
    """Read the command line, join the other ranks and train; return the exit code."""
    parser = argparse.ArgumentParser(description="Train an image-text retrieval model.")
    parser.add_argument("--config", required=True, metavar="FILE.yaml")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    # DeepSpeed's launcher passes it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    main_rank = os.environ.get("RANK", "0") == "0"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop_before_the_first_step)
    try:
        # Imported here: a mistyped option should not wait for torch.
        from vse_scale.console import configure_logging, log

        configure_logging(main=main_rank)
        log.info("loading torch, DeepSpeed and DALI")
        from vse_scale.training.setup import load_config
        from vse_scale.training.trainer import train
        from vse_scale.world.join import leave_world

        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        code = train(load_config(arguments.config, arguments.overrides, ranks))
        leave_world()
        return code
    except UserError as error:
        if arguments.debug:
            raise
        if not main_rank:
            # The main rank reports what every rank found; afterwards this one reports its own.
            time.sleep(MESSAGE_SECONDS)
        print(f"vse-scale: error: {error}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        if arguments.debug or not any(words in str(error) for words in _RANK_IS_GONE):
            raise
        log.error(
            "another rank died, or was silent for engine.timeout_seconds; the same command goes "
            "on from the newest checkpoint (%s)", str(error).splitlines()[0],
        )  # fmt: skip
        return 1


def _stop_before_the_first_step(number: int, frame: FrameType | None) -> None:
    """Leave at once: there is nothing to save, and the same command starts as it would have."""
    if os.environ.get("RANK", "0") == "0":
        os.write(sys.stderr.fileno(), b"stopped before the first step; the same command goes on\n")
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    sys.exit(main())
