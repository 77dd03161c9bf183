"""A signal before a time limit, through launchers that do not pass it on."""

from __future__ import annotations

import shlex
import signal
import time
from pathlib import Path

import pytest
from commandline import installed
from groups import Group
from ranks import environment_without_launcher

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ranks_checkpoint_below_launchers_that_ignore_the_signal(
    small_run: Path, tmp_path: Path
) -> None:
    """As launch/slurm/deepspeed.sbatch starts it, and as docs/operations.md says."""
    deepspeed = installed("deepspeed")
    command = shlex.join(
        [
            *(str(deepspeed), "--num_gpus", "2", "--quiet", str(ROOT / "launch" / "train.py")),
            *("--config", str(small_run), "train.epochs=200", "eval.every_epochs=200"),
        ]
    )
    ignoring = ["bash", "-c", f"trap '' USR1; exec {command}"]
    with Group(ignoring, environment_without_launcher(), tmp_path / "log") as launcher:
        assert launcher.wait_for_words("steps an epoch"), launcher.said()[-4000:]
        time.sleep(1.0)
        launcher.send_all(signal.SIGUSR1)
        assert launcher.wait(90) == 75, launcher.said()[-4000:]
        assert "stopped after step" in launcher.said()
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
