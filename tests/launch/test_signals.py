"""A signal before a time limit, through launchers that do not pass it on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ranks_checkpoint_below_launchers_that_ignore_the_signal(
    small_run: Path, tmp_path: Path
) -> None:
    """As launch/slurm/deepspeed.sbatch starts it, and as docs/operations.md says."""
    deepspeed = Path(sys.executable).with_name("deepspeed")
    command = shlex.join(
        [
            *(str(deepspeed), "--num_gpus", "2", "--quiet", str(ROOT / "launch" / "train.py")),
            *("--config", str(small_run), "train.epochs=200", "eval.every_epochs=200"),
        ]
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"trap '' USR1; exec {command}"],
            stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while "steps an epoch" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.2)
        time.sleep(1.0)
        os.killpg(process.pid, signal.SIGUSR1)
        assert process.wait(timeout=90) == 75, log.read_text()[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopped after step" in log.read_text()
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
