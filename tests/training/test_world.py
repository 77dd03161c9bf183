"""Joining: a lock that a killed process left is no end of all that come after it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

JOIN = "from vse_scale.training.world import join_world; join_world(20); print('joined')"


@pytest.mark.slow
def test_a_lock_that_a_killed_process_left_holds_nobody_up(tmp_path: Path) -> None:
    for compiled in Path(cpp_extension.get_default_build_root()).glob("*/deepspeed_shm_comm"):
        # Spares this test the minute of compiling.
        shutil.copytree(compiled, tmp_path / compiled.name, dirs_exist_ok=True)
    (tmp_path / "deepspeed_shm_comm").mkdir(exist_ok=True)
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.touch()
    joined = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert joined.returncode == 0, joined.stderr[-2000:]
    assert "joined" in joined.stdout
    assert not lock.exists()
