"""The SLURM scripts, against stand-ins for SLURM's commands: what they do after each exit code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from vse_scale.commands.launch_files import launch_files
from vse_scale.errors import OutputError

ROOT = Path(__file__).parents[2]
SCRIPTS = ("train.sbatch", "deepspeed.sbatch")

# Each call takes the next exit code, after it has trained as far as the next checkpoint, if any.
SRUN = """#!/usr/bin/env bash
env >"$LOG/environment"
echo "restarts=$VSE_SCALE_RESTARTS cores=$SRUN_CPUS_PER_TASK ${*//$'\n'/ }" >>"$LOG/srun"
n=$(($(wc -l <"$LOG/srun") - 1))
codes=($CODES) checkpoints=($CHECKPOINTS)
[ "${checkpoints[n]:--}" = - ] || mkdir -p "$RUN/checkpoints/${checkpoints[n]}"
cp "$VSE_TARGETS"/* "$LOG" 2>/dev/null
exit "${codes[n]}"
"""
# As strict as the command: a configuration of this name has a mistake in it.
CHECK = """#!/usr/bin/env bash
echo "$*" >>"$LOG/checked"
env >"$LOG/environment-of-check"
[[ $* != *mistake* ]] || exit 2
"""
SCONTROL = """#!/usr/bin/env bash
case "$*" in
  *"show job"*) echo "   StartTime=$(date -Is) EndTime=${END:-Unknown}" ;;
  *show*) echo n1; echo n2 ;;
  *) echo "$*" >>"$LOG/scontrol" ;;
esac
"""


@dataclass
class Job:
    """What a script left when it ended."""

    folder: Path
    code: int = 0
    said: str = ""
    starts: list[str] = field(default_factory=list)
    requeues: list[str] = field(default_factory=list)


def submit(
    folder: Path, script: str, codes: str, checkpoints: str = "", run: str = "",
    scripts: str | Path = "launch/slurm", cwd: Path = ROOT, **more: str,
) -> Job:  # fmt: skip
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("sleep", "#!/bin/sh\n"),
        ("vse-scale", CHECK),
    ):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (folder / "targets").mkdir()
    job = Job(folder)
    ended = subprocess.run(
        ["bash", f"{scripts}/{script}", run or folder / "coco", "recipe.yaml", "run.seed=7"],
        env={
            "PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(folder), "LOG": str(folder),
            "RUN": str(folder / "coco"), "CODES": codes, "CHECKPOINTS": checkpoints,
            "VSE_TARGETS": str(folder / "targets"), "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "2",
            "SLURM_NTASKS_PER_NODE": "2", **more,
        },
        capture_output=True, text=True, timeout=300, cwd=cwd,
    )  # fmt: skip
    job.code, job.said = ended.returncode, ended.stderr
    for name, lines in (("srun", job.starts), ("scontrol", job.requeues)):
        if (folder / name).exists():
            lines += (folder / name).read_text().splitlines()
    return job


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_complete_run_ends_the_job(tmp_path: Path, script: str) -> None:
    job = submit(tmp_path, script, codes="0")
    assert (job.code, job.requeues) == (0, []), job.said
    assert (tmp_path / "srun").read_text().count("--config recipe.yaml") == 1
    assert f"run.dir={tmp_path}/coco run.seed=7" in (tmp_path / "srun").read_text()
    if script == "deepspeed.sbatch":
        assert (tmp_path / "coco" / "hostfile").read_text() == "n1 slots=2\nn2 slots=2\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_written_scripts_run_from_any_folder(tmp_path: Path, script: str) -> None:
    launch_files(tmp_path / "launch-files")
    files = sorted(path for path in (tmp_path / "launch-files").rglob("*") if path.is_file())
    assert {path.name for path in files} >= {script, "common.sh", "alerts.yml", "vse-scale.json"}
    assert not [path for path in files if re.search(r"(?<!-files/)\blaunch/", path.read_text())]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    written = tmp_path / "launch-files" / "slurm"
    job = submit(tmp_path, script, codes="0", scripts=written, cwd=elsewhere)
    assert (job.code, job.requeues) == (0, []), job.said
    assert len(job.starts) == 1
    with pytest.raises(OutputError, match="exists already; name a new folder"):
        launch_files(tmp_path / "launch-files")
    with pytest.raises(OutputError, match="would have to quote this name"):
        launch_files(tmp_path / "two words")
    assert not (tmp_path / "two words").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stopped_run_goes_back_into_the_queue(tmp_path: Path, script: str) -> None:
    job = submit(tmp_path, script, codes="75")
    assert (job.code, job.requeues) == (0, ["requeue 12345"]), job.said


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistake_is_not_tried_again(tmp_path: Path, script: str) -> None:
    job = submit(tmp_path, script, codes="2")
    assert (job.code, job.requeues) == (2, []), job.said
    assert job.said == ""


def restarts(tmp_path: Path) -> list[int]:
    lines = (tmp_path / "srun").read_text().splitlines()
    return [int(line.split()[0].removeprefix("restarts=")) for line in lines if "restarts=" in line]


def test_a_dead_rank_is_started_again_and_counted(tmp_path: Path) -> None:
    job = submit(tmp_path, "train.sbatch", codes="137 1 0", SLURM_RESTART_COUNT="4")
    assert (job.code, job.requeues) == (0, [])
    assert restarts(tmp_path) == [4, 5, 6]
    assert "exit code 137; starting it again" in job.said


def test_a_run_that_dies_without_a_checkpoint_is_given_up(tmp_path: Path) -> None:
    job = submit(tmp_path, "train.sbatch", codes="1 1 1 9 0")
    assert len(job.starts) == 4
    assert job.code == 9
    assert "died 4 times without a new checkpoint" in job.said


def test_one_that_gets_on_between_its_deaths_is_not(tmp_path: Path) -> None:
    steps = " ".join(f"step-{number:08d}" if number % 2 else "-" for number in range(9))
    job = submit(tmp_path, "train.sbatch", codes="1 1 1 1 1 1 1 1 0", checkpoints=steps)
    assert (job.code, len(job.starts)) == (0, 9), job.said


def test_prometheus_is_told_while_the_job_runs(tmp_path: Path) -> None:
    submit(tmp_path, "train.sbatch", codes="0")
    (group,) = yaml.safe_load((tmp_path / "12345.yml").read_text())
    assert group["targets"] == ["n1:9840", "n1:9841", "n2:9840", "n2:9841"]
    assert group["labels"] == {"run": "coco"}
    assert list((tmp_path / "targets").iterdir()) == []


def dataset(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    return folder


def test_a_dataset_is_staged_on_every_node(tmp_path: Path) -> None:
    data = dataset(tmp_path / "shared" / "flickr", "{}")
    job = submit(tmp_path, "train.sbatch", codes="0 0", VSE_DATA=str(data), VSE_LOCAL="/disk")
    staging, training = (tmp_path / "srun").read_text().splitlines()
    assert "--ntasks=2 --ntasks-per-node=1" in staging
    assert re.search(rf"stage {data} (/disk/flickr-[0-9a-f]{{16}}) \1$", staging)
    assert training.endswith(f"data.path={staging.split()[-1]}")
    assert job.code == 0
    # By what is in it: another dataset of that name gets a place of its own.
    again = tmp_path / "again"
    again.mkdir()
    other = dataset(again / "shared" / "flickr", "{ }")
    submit(again, "train.sbatch", codes="0 0", VSE_DATA=str(other), VSE_LOCAL="/disk")
    assert (again / "srun").read_text().splitlines()[0].split()[-1] != staging.split()[-1]


def test_a_configuration_is_checked_before_a_dataset_is_copied(tmp_path: Path) -> None:
    data = dataset(tmp_path / "mistake", "{}")
    job = submit(tmp_path, "train.sbatch", codes="0 0", VSE_DATA=str(data))
    assert (job.code, job.starts) == (2, [])
    checked = (tmp_path / "checked").read_text()
    assert "--dry-run --ranks 4 --config recipe.yaml" in checked
    assert f"run.seed=7 data.path={data}" in checked


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_configuration_is_checked_before_a_rank_starts(tmp_path: Path, script: str) -> None:
    """In a folder of runs whose name is a URL: nothing is written there."""
    job = submit(tmp_path, script, codes="0", run="s3://mistake/coco")
    assert (job.code, job.starts) == (2, [])
    assert not (ROOT / "s3:").exists()


def test_a_dataset_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    job = submit(tmp_path, "train.sbatch", codes="0 0", VSE_DATA=str(tmp_path / "nothing"))
    assert (job.code, job.starts) == (2, [])
    assert "there is no manifest.json; give a dataset's folder" in job.said


def test_requeues_that_bring_nothing_are_counted(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "requeues").write_text("3\n")
    job = submit(tmp_path, "train.sbatch", codes="75")
    assert (job.code, job.requeues) == (1, [])
    assert "4 times without a new checkpoint; raise --time" in job.said
    assert "or see to the storage where an error above names one" in job.said


def test_a_new_checkpoint_sets_the_count_back(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "requeues").write_text("3\n")
    job = submit(tmp_path, "train.sbatch", codes="75", checkpoints="step-00000007")
    assert (job.code, job.requeues) == (0, ["requeue 12345"])
    assert (tmp_path / "coco" / "requeues").read_text() == "0\n"


@pytest.mark.parametrize(
    ("seconds", "signal", "code"),
    [(240, None, 2), (400, None, 0), (240, "USR1@120", 0), (400, "B:USR1@500", 2)],
)
def test_a_time_limit_within_the_signals_lead_is_refused(
    tmp_path: Path, seconds: int, signal: str | None, code: int
) -> None:
    more = {"END": (datetime.now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")}
    if signal is not None:
        more["SBATCH_SIGNAL"] = signal
    job = submit(tmp_path, "train.sbatch", codes="0", **more)
    assert (job.code, len(job.starts)) == (code, 0 if code else 1)
    assert ("raise --time, or set SBATCH_SIGNAL=USR1@SECONDS" in job.said) == bool(code)


def test_a_task_gets_the_cores_that_the_job_asked_for(tmp_path: Path) -> None:
    """From SLURM 22.05 on srun has to be told again, and bound each task to one core.

    reframe-hpc/reframe#2655, snakemake/snakemake-executor-plugin-slurm#41.
    """
    submit(tmp_path, "train.sbatch", codes="0", SLURM_CPUS_PER_TASK="8")
    assert "restarts=0 cores=8 " in (tmp_path / "srun").read_text()


def test_nothing_is_imported_from_the_folder_of_the_job(tmp_path: Path) -> None:
    """And other machines can scrape it, where Prometheus is told of it."""
    submit(tmp_path, "train.sbatch", codes="0")
    text = (ROOT / "launch" / "slurm" / "common.sh").read_text()
    assert "export PYTHONSAFEPATH=1" in text
    assert "telemetry.address=0.0.0.0 run.dir=" in (tmp_path / "srun").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_place_of_another_run_in_the_submitting_shell_is_none_of_this_one(
    tmp_path: Path, script: str
) -> None:
    """sbatch hands a shell's variables on: ranks met on its machine, or were refused."""
    place = {
        "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1", "RANK": "3", "WORLD_SIZE": "4",
        "LOCAL_RANK": "3", "LOCAL_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "CROSS_RANK": "0",
        "TORCHELASTIC_RUN_ID": "x",
    }  # fmt: skip
    assert submit(tmp_path, script, codes="0", **place).code == 0
    for name, own in (("environment-of-check", {}), ("environment", {"MASTER_ADDR": "n1"})):
        seen = dict(re.findall(r"^(\w+)=(.*)$", (tmp_path / name).read_text(), re.MULTILINE))
        own = own if script == "deepspeed.sbatch" else {}
        left = {key: seen[key] for key in place if key in seen and key != "MASTER_PORT"}
        assert left == own, name
        assert seen.get("MASTER_PORT") != "1", name


def copied(folder: Path, *, own: Path | None = None, **programs: str) -> tuple[int, str]:
    """Copy ``folder / "shared"`` to ``folder / "disk" / "data"``; programs are stand-ins."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in programs.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    disk = own or folder / "disk"
    ended = subprocess.run(
        ["bash", "-c", '. launch/slurm/common.sh; copy_missing "$@"', "stage",
         folder / "shared", disk, disk / "data"],
        env={"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    return ended.returncode, ended.stderr


def test_a_copy_that_lacks_files_is_no_success(tmp_path: Path) -> None:
    """As where a folder of the dataset cannot be read."""
    dataset(tmp_path / "shared", "{}")
    part_of_it = "#!/bin/sh\nprintf './manifest.json\\0'\nexit 1\n"
    assert copied(tmp_path, find=part_of_it)[0] == 1
    (tmp_path / "bin" / "find").unlink()
    assert copied(tmp_path) == (0, "")
    assert (tmp_path / "disk" / "data" / "manifest.json").read_text() == "{}"


def test_two_jobs_write_no_file_together_where_locks_do_not_work(tmp_path: Path) -> None:
    dataset(tmp_path / "shared", "{}")
    other = tmp_path / "disk" / "data" / "manifest.json.part"
    copying = f"""#!/bin/sh
echo "$2" >>{tmp_path}/parts
exec /bin/cp "$@"
"""
    assert copied(tmp_path, cp=copying, flock="#!/bin/sh\nexit 1\n")[0] == 0
    (tmp_path / "disk" / "data" / "manifest.json").unlink()
    (tmp_path / "bin" / "flock").unlink()
    left = Path(f"{other}.{socket.gethostname()}.5")  # of a job that was killed
    left.touch()
    elsewhere = Path(f"{other}.elsewhere.5")
    elsewhere.touch()
    assert copied(tmp_path)[0] == 0
    assert set((tmp_path / "parts").read_text().split()) == {
        f"{other.parent}/./{other.name}.{socket.gethostname()}.7"
    }
    assert not left.exists()
    assert elsewhere.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, for a folder of another user's")
def test_a_folder_of_another_user_is_one_line(tmp_path: Path) -> None:
    dataset(tmp_path / "shared", "{}")
    (tmp_path / "disk").mkdir()
    os.chown(tmp_path / "disk", 1234, 1234)
    code, said = copied(tmp_path)
    assert code == 2
    assert said.endswith("belongs to another user; set VSE_LOCAL to a folder of your own\n")
    assert said.count("\n") == 1
    assert list((tmp_path / "disk").iterdir()) == []
    assert copied(tmp_path, own=tmp_path / "mine") == (0, "")
