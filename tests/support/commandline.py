"""The installed commands, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from groups import Group
from ranks import environment_without_launcher


def installed(name: str) -> Path:
    """Return the path of a command of this environment."""
    return Path(sys.executable).with_name(name)


def vse_scale(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; standard output and standard error apart."""
    return subprocess.run(
        [installed("vse-scale"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment_without_launcher(),
    )


def training(
    ranks: int,
    log: Path,
    *arguments: str | Path,
    start: type[Group] = Group,
    more: Mapping[str, str] | None = None,
) -> Group:
    """Start ``vse-scale train`` in the background, both outputs in ``log``.

    ``more`` is added to the environment.
    """
    command = [installed("vse-scale"), "train", "--ranks", str(ranks), *arguments]
    return start(command, environment_without_launcher() | dict(more or {}), log)
