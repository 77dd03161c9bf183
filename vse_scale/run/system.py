"""The machine of a run: processors, memory, GPUs and the versions that decide its results."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import psutil
import torch

from vse_kernels.measurements import processor

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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
