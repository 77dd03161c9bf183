"""The command as launchers start it: two processes are two ranks of one run.

After pytorch/ignite#2048 (two launchers at once, and a program that hangs) and
Lightning-AI/pytorch-lightning#4389 and #13639 (ranks of srun and MPI that are there twice).
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from commandline import installed
from groups import Group
from ranks import environment_without_launcher

from vse_scale.run.journal import read_journal

pytestmark = pytest.mark.slow

TASK = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "2",
}  # fmt: skip


def assert_one_run_of_two_ranks(folder: Path) -> None:
    assert [record["step"] for record in read_journal(folder / "metrics.jsonl")] == [0, 1]
    assert json.loads((folder / "system.json").read_text())["ranks"] == 2
    assert not (folder / "lock").exists()


def command(config: Path) -> list[str]:
    return ["train", "--config", str(config), "train.max_steps=2", "train.calibration_images=8"]


def test_below_torchrun(small_run: Path, tmp_path: Path) -> None:
    launcher = [installed("torchrun"), "--nproc-per-node", "2", "-m", "vse_scale.cli"]
    log = tmp_path / "log"
    with Group([*launcher, *command(small_run)], environment_without_launcher(), log) as run:
        assert run.wait(250) == 0, run.said()[-4000:]
        assert "starting 2 ranks" not in run.said()
    assert_one_run_of_two_ranks(tmp_path / "run")


def test_as_tasks_of_slurm(small_run: Path, tmp_path: Path) -> None:
    """With what srun tells its tasks, and without srun."""
    with ExitStack() as started:
        tasks = []
        for rank in ("0", "1"):
            told = {**TASK, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
            environment = environment_without_launcher() | told
            task = Group(
                [installed("vse-scale"), *command(small_run)], environment, tmp_path / f"{rank}.log"
            )
            tasks.append(started.enter_context(task))
        assert [task.wait(250) for task in tasks] == [0, 0], tasks[0].said()[-4000:]
    assert_one_run_of_two_ranks(tmp_path / "run")


def test_below_mpirun(small_run: Path, tmp_path: Path) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun (Debian's package openmpi-bin)")
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    log = tmp_path / "log"
    arguments = [*launcher, installed("vse-scale"), *command(small_run)]
    with Group(arguments, environment_without_launcher(), log) as run:
        assert run.wait(250) == 0, run.said()[-4000:]
    assert_one_run_of_two_ranks(tmp_path / "run")
