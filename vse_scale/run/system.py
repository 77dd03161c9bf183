"""The machine of a run: processors, memory, GPUs and the versions that decide its results."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from vse_kernels.measurements import processor
from vse_shards.masking import masked

_PACKAGES = (
    "vse-scale", "torch", "triton", "deepspeed", "nvidia-dali-cuda130", "transformers", "numpy",
)  # fmt: skip


def describe_system(ranks: int) -> dict[str, Any]:
    """Return the facts of the machine of this rank, units in the names; no host is named."""
    gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return {
        "ranks": ranks,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "threads_per_rank": torch.get_num_threads(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def describe_origin() -> dict[str, str]:
    """Return the origin of a run: UTC, its command without secrets, and the commit of the code."""
    # The names of modules that commands are started by; "__main__.py" is that of a run's ranks.
    program = Path(sys.argv[0]).name
    started = {"cli.py": ["vse-scale"], "__main__.py": ["vse-scale", "train"]}
    command = [*started.get(program, [program]), *sys.argv[1:]]
    found = {
        "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": masked(shlex.join(command)),
        "commit": _commit(Path(__file__)),
    }
    return {name: value for name, value in found.items() if value}


def _commit(file: Path) -> str:
    """Return the commit of the checkout that holds ``file``, "+" behind it where it was changed."""
    said = ""
    # A wheel may lie in an environment inside a checkout of something else.
    for words in (
        ["ls-files", "--error-unmatch", file.name],
        ["describe", "--always", "--dirty=+"],
    ):
        command = ["git", "-C", str(file.parent), *words]
        try:
            said = subprocess.run(
                command, capture_output=True, text=True, timeout=10, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return ""
    return said.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
