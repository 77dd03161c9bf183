"""Joining: nothing is compiled, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

JOIN = "from vse_scale.world.join import join_world; join_world(20); print('joined')"


def test_joining_compiles_nothing_and_leaves_no_shared_memory(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    before = set(shared.glob("deepspeed_*"))
    joined = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert joined.returncode == 0, joined.stderr[-2000:]
    assert joined.stdout == "joined\n"
    assert not list(tmp_path.iterdir())
    assert set(shared.glob("deepspeed_*")) <= before
