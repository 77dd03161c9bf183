"""Where the GPU tests run: on CUDA, or, to rehearse them, in the interpreter at small sizes.

    VSE_REHEARSE=1 pytest tests/gpu

runs every test that does not need the device itself on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

REHEARSING = os.environ.get("VSE_REHEARSE") == "1"


def pytest_collection_modifyitems(items):
    """Skip what cannot run here; everything in this folder is marked gpu."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") and not REHEARSING:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif item.get_closest_marker("gpu") and "on_device" in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="needs the device itself, cannot be rehearsed"))


@pytest.fixture(scope="session")
def device() -> str:
    """The device that the kernels run on."""
    return "cpu" if REHEARSING and not torch.cuda.is_available() else "cuda"


@pytest.fixture
def on_device() -> None:
    """Asked for by tests that the interpreter cannot stand in for."""


@pytest.fixture(scope="session")
def scaled():
    """A size on the device, and a small one while rehearsing."""
    return lambda full, small: small if REHEARSING and not torch.cuda.is_available() else full
