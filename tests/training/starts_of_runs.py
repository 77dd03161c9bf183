"""Starts of several runs, one after the other, in one process.

Usage: starts_of_runs.py CONFIG STARTS.json

A start is a list of overrides. For each a line of JSON goes to standard output: ``code``, the exit
code, and ``said``, what was logged, the error included.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

from vse_scale.config import Config
from vse_scale.console import configure_logging, log
from vse_scale.errors import UserError
from vse_scale.training.trainer import train


def main(config: str, starts: str) -> None:
    configure_logging(main=True)
    for overrides in json.loads(Path(starts).read_text()):
        log.info("start %s", overrides)
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        log.addHandler(handler)
        try:
            code = train(Config.load(config, overrides))
        except UserError as error:
            code = error.exit_code
            said.write(str(error))
        log.removeHandler(handler)
        print(json.dumps({"code": code, "said": said.getvalue()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
