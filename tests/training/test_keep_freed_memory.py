"""Memory that a step frees is used again by the next one."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from vse_scale.world import join

_SCRIPT = """
import resource
import numpy as np
from vse_scale.world.join import keep_freed_memory

def step():
    blocks = [np.ones(1 << 21) for _ in range(12)]  # 16 MiB each

keep_freed_memory({})
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_BYTES = 12 * (1 << 24)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_maps_few_pages_anew() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    faults = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(faults) < _BYTES / resource.getpagesize() / 100


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_user_has_set_is_left_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join.ctypes, "CDLL", None)  # calling it fails
    join.keep_freed_memory({name: "2"})
