"""Run the scripts of the repository that measure one package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from vse_scale.console import heartbeat

REPOSITORY = Path(__file__).resolve().parents[2]


def run_script(script: str, arguments: Iterable[object]) -> None:
    """Run a script, by its path in the repository, on all cores that this process may use.

    Raises:
        RuntimeError: it failed; the message has its standard error.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    with heartbeat(script):
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{script} left with {done.returncode}:\n{done.stderr}")
