"""What every test stands on: the interpreter for kernels, one thread, the shared reference data."""

from __future__ import annotations

import os
from pathlib import Path

# Both must be set before the first import of torch or triton: the kernel language decides at
# import whether it interprets, and thread pools are sized once.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu" if "TRITON_INTERPRET" in os.environ else "cuda")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published numbers and real photos, beside the repository."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs the reference data in ../shared, which is not there")
    return SHARED
