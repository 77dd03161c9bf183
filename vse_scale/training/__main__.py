"""``python -m vse_scale.training``: the process that a launcher starts once per rank."""

from __future__ import annotations

import argparse
import os
import sys
import time

from vse_scale.errors import UserError

_GRACE_SECONDS = 10.0


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
    try:
        # Imported here: a mistyped option should not wait for torch.
        from vse_scale.telemetry.progress import configure_logging, log

        configure_logging(main=main_rank)
        log.info("loading torch, DeepSpeed and DALI")
        from vse_scale.training.setup import load_config
        from vse_scale.training.trainer import train

        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return train(load_config(arguments.config, arguments.overrides, ranks))
    except UserError as error:
        if arguments.debug:
            raise
        if not main_rank:
            # Mostly every rank finds the same mistake, and the launcher ends all when one leaves:
            # let the main rank say it. What this rank alone found is said after the wait.
            time.sleep(_GRACE_SECONDS)
        print(f"vse-scale: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
