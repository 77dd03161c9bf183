"""The SLURM scripts, bare srun and mpirun on two nodes of a real SLURM.

After Lightning-AI/pytorch-lightning#18950 and Lightning-AI/pytorch-lightning#10150 (tasks that each
train alone), Lightning-AI/pytorch-lightning#20391 and ACEsuit/mace#828 (a job whose tasks are not
``--ntasks-per-node``), hydra-ecosystem/hydra#108 (a signal that ends a job for good) and
facebookincubator/submitit#1708 (the same at the time limit).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from launching import assert_same_run
from slurm_cluster import Cluster, slurm_cluster
from warm import vse_scale

from vse_scale.run.lock import RunLock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SOAK = pytest.mark.soak
ROOT = Path(__file__).parents[2]
DEEPSPEED_SOAKED = ["train.sbatch", pytest.param("deepspeed.sbatch", marks=SOAK)]
_UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUE")
OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(scope="module")
def config(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout; a checkpoint every four steps, and a validation at the end."""
    path = tmp_path_factory.mktemp("config") / "slurm.yaml"
    path.write_text(
        f"""
base: {ROOT / "tests" / "small.yaml"}
data: {{path: {scenes}}}
model: {{dropout: 0.1}}
optim: {{drop_epochs: [3]}}
train: {{epochs: 4}}
eval: {{every_epochs: 4}}
engine: {{timeout_seconds: 60}}
run: {{dir: unused, checkpoint_steps: 4}}
telemetry: {{prometheus_port: null, tensorboard: false}}
"""
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks of this machine, from its beginning to its end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = vse_scale("train", "--ranks", "2", "--config", config, f"run.dir={folder}")
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@dataclass(frozen=True)
class Job:
    """A job in the queue, and the file that its output goes to."""

    cluster: Cluster
    number: str
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, words: str, times: int = 1) -> None:
        """Wait until the job has said something so often."""
        self._wait(lambda: self.said().count(words) >= times, poll=0.02)
        assert self.said().count(words) >= times, self.said()[-4000:]

    def wait_for_state(self, state: str) -> None:
        self._wait(lambda: self.cluster.state(self.number).startswith(state))
        assert self.cluster.state(self.number).startswith(state), self.said()[-4000:]

    def _wait(self, condition: Callable[[], bool], poll: float = 0.5) -> None:
        """Wait until ``condition`` holds or the job has ended; SLURM is asked twice a second."""
        began = asked = time.monotonic()
        while not condition():
            now = time.monotonic()
            assert now < began + 600, self.said()[-4000:] + self.cluster.logs()
            if now > asked + 0.5:
                if self.has_ended():
                    return
                asked = time.monotonic()
            time.sleep(poll)

    def has_ended(self) -> bool:
        return not self.cluster.state(self.number).startswith(_UNDER_WAY)

    def start_now(self) -> None:
        """Spare a requeued job the two minutes that SLURM lets it wait."""
        self.wait_for_state("PENDING")
        time.sleep(2.5)  # a node starts no job again in the second in which it ended
        self.cluster.ask("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def end(self) -> str:
        """Return its last state and exit code, and check that nothing of it is left."""
        self._wait(self.has_ended)
        deadline = time.monotonic() + 120
        while left := ranks_of(self.number):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        return self.cluster.state(self.number)


def submit(
    cluster: Cluster, script: str, run: Path | str, config: Path, *overrides: str,
    options: tuple[str, ...] = OPTIONS, **more: str,
) -> Job:  # fmt: skip
    log = cluster.folder / f"{time.monotonic_ns()}.log"
    command = ["sbatch", "--parsable", *options, f"--output={log}", f"launch/slurm/{script}"]
    asked = cluster.run(*command, str(run), str(config), *overrides, cwd=ROOT, **more)
    assert asked.returncode == 0, asked.stderr
    return Job(cluster, asked.stdout.strip(), log)


def ranks_of(job: str) -> dict[int, psutil.Process]:
    """Return the running ranks of a job by their number."""
    found = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("SLURM_JOB_ID") == job and "SLURM_STEP_ID" in environment:
                words = " ".join(process.cmdline())
                if re.search(r"-m vse_scale\.training|launch/train\.py|vse-scale train", words):
                    found[int(environment.get("RANK", environment["SLURM_PROCID"]))] = process
        except psutil.Error:
            continue
    return found


def errors_of(job: Job) -> set[str]:
    """Return the lines of ours; srun and slurmstepd tell too that they end the others.

    A rank says what the main one found once more, where that one has not left within seconds.
    """
    lines = {line for line in job.said().splitlines() if "error:" in line}
    return {line for line in lines if "srun" not in line and "slurmstepd" not in line}


@pytest.mark.parametrize("script", DEEPSPEED_SOAKED)
def test_a_job_goes_on_after_a_killed_rank_and_after_the_signal_before_its_limit(
    cluster: Cluster, config: Path, undisturbed: Path, tmp_path: Path, script: str
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, script, run, config)
    job.wait_for("checkpoint ")
    ranks_of(job.number)[1].kill()
    job.wait_for("starting it again")
    job.wait_for("steps an epoch", times=2)
    job.wait_for("checkpoint ", times=job.said().count("checkpoint ") + 1)
    cluster.ask("scancel", "--signal=USR1", job.number)
    job.wait_for("stopped after step")
    job.start_now()
    assert job.end() == "COMPLETED 0:0", job.said()[-4000:]
    assert "Traceback" not in job.said()
    assert_same_run(run, undisturbed, beside=frozenset({"requeues", "hostfile"}))


@pytest.mark.parametrize("script", DEEPSPEED_SOAKED)
def test_a_mistyped_key_is_one_line_and_no_requeue(
    cluster: Cluster, config: Path, tmp_path: Path, script: str
) -> None:
    job = submit(cluster, script, tmp_path / "run", config, "optim.learning_rate=1")
    assert job.end() == "FAILED 2:0"
    (line,) = errors_of(job)
    assert "optim.lr" in line
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_not_there_is_one_line_and_no_requeue(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    jobs = [
        submit(cluster, "train.sbatch", tmp_path / "run", config, f"data.path={nowhere}"),
        submit(cluster, "train.sbatch", tmp_path / "run", config, VSE_DATA=str(nowhere)),
    ]
    assert [job.end() for job in jobs] == ["FAILED 2:0"] * 2
    (line,) = errors_of(jobs[0])
    assert str(nowhere) in line
    assert jobs[1].said().count("there is no manifest.json; give a dataset's folder") == 1


def test_the_second_of_two_jobs_on_one_folder_is_refused(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    """While the first, here this process, goes on."""
    with RunLock(tmp_path / "run"):
        job = submit(cluster, "train.sbatch", tmp_path / "run", config)
        assert job.end() == "FAILED 2:0", job.said()[-4000:]
    (line,) = errors_of(job)
    assert "run.dir" in line
    assert "Restarts=0" in cluster.ask("scontrol", "show", "job", job.number)


# In place of a rank, and of the command that checks: what a test of the scripts alone needs.
RANK = """#!/usr/bin/env bash
echo "$SLURM_PROCID $*" >>"$RANKS"
exit "${CODE:-0}"
"""


@pytest.fixture
def ranks(tmp_path: Path) -> dict[str, str]:
    """An environment in which a rank writes down its arguments, and leaves with CODE."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("python", RANK), ("vse-scale", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {"PATH": path, "RANKS": str(tmp_path / "ranks"), "VSE_LOCAL": str(tmp_path / "disk")}


def test_datasets_of_one_name_are_staged_apart_and_files_whole(
    cluster: Cluster, config: Path, scenes: Path, tmp_path: Path, ranks: dict[str, str]
) -> None:
    """Without rsync; what a killed job left half copied is copied again."""
    staged = []
    for number in (1, 2):
        data = tmp_path / str(number) / "shards"
        shutil.copytree(scenes, data)
        manifest = data / "manifest.json"
        manifest.write_text(manifest.read_text() + " " * number)
        job = submit(cluster, "train.sbatch", tmp_path / "run", config, **ranks, VSE_DATA=str(data))
        assert job.end() == "COMPLETED 0:0", job.said()
        said = (tmp_path / "ranks").read_text()
        assert len(said.splitlines()) == 2 * number
        (where,) = set(re.findall(r"data\.path=(\S+)", said)) - {str(folder) for folder in staged}
        staged.append(Path(where))
        copied = {path.name: path.read_bytes() for path in staged[-1].iterdir()}
        del copied[".lock"]
        assert copied == {path.name: path.read_bytes() for path in data.iterdir()}
    assert staged[0].stat().st_mode & 0o777 == 0o700
    torn = max(staged[1].glob("*.tar"))
    os.truncate(torn, 1000)
    before = max(staged[1].glob("*.idx")).stat().st_mtime_ns
    job = submit(cluster, "train.sbatch", tmp_path / "run", config, **ranks, VSE_DATA=str(data))
    assert job.end() == "COMPLETED 0:0", job.said()
    assert torn.read_bytes() == (data / torn.name).read_bytes()
    assert max(staged[1].glob("*.idx")).stat().st_mtime_ns == before


def test_bare_srun_trains_as_one_machine_does(
    cluster: Cluster, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    ended = cluster.run(
        *("srun", "--nodes=2", "--ntasks=2", "--gpus-per-node=1", "vse-scale", "train"),
        *("--config", config, f"run.dir={tmp_path / 'run'}"), timeout=400,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert_same_run(tmp_path / "run", undisturbed)


def test_mpirun_trains_as_one_machine_does(
    cluster: Cluster, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun (Debian's package openmpi-bin)")
    ended = cluster.run(
        *("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "vse-scale", "train"),
        *("--config", config, f"run.dir={tmp_path / 'run'}"), timeout=400,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert_same_run(tmp_path / "run", undisturbed)


PLACE = """
import os
from vse_scale.world.place import find_place
place = find_place(os.environ)
print(place.rank, place.ranks, place.local_rank)
"""


@pytest.mark.parametrize("plugin", ["none", "pmi2", "pmix", "MpiDefault=pmi2"])
def test_a_task_knows_its_place_under_every_plugin_of_mpi(cluster: Cluster, plugin: str) -> None:
    """SchedMD's plugins set PMI_RANK or PMIX_RANK beside SLURM's own names."""
    options, more = (f"--mpi={plugin}",), {}
    if plugin == "MpiDefault=pmi2":
        written = (cluster.folder / "slurm.conf").read_text()
        (cluster.folder / "pmi2.conf").write_text(written.replace("MpiDefault=none", plugin))
        options, more = (), {"SLURM_CONF": str(cluster.folder / "pmi2.conf")}
    asked = ("srun", "--nodes=2", "--ntasks-per-node=2", *options, sys.executable, "-c", PLACE)
    ended = cluster.run(*asked, **more)
    if "MPI: Unable to load any plugin" in ended.stderr:  # mpi_pmix.so is there, libpmix is not
        pytest.skip(f"this SLURM cannot load its plugin {plugin}")
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert sorted(ended.stdout.splitlines()) == ["0 4 0", "1 4 1", "2 4 0", "3 4 1"], ended.stdout


@SOAK
def test_the_signal_before_the_time_limit_brings_the_job_back(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    """SLURM's own: it looks at its limits twice a minute."""
    signals = {"SBATCH_SIGNAL": "USR1@60"}
    job = submit(
        cluster, "deepspeed.sbatch", tmp_path / "run", config, "train.epochs=400",
        options=(*OPTIONS, "--time=5"), **signals,
    )  # fmt: skip
    job.wait_for("stopped after step")
    job.start_now()
    job.wait_for("resumed from")
    cluster.ask("scancel", job.number)
    assert job.end().startswith("CANCELLED")


def test_requeues_that_bring_nothing_end_after_the_fourth(
    cluster: Cluster, config: Path, tmp_path: Path, ranks: dict[str, str]
) -> None:
    job = submit(cluster, "train.sbatch", tmp_path / "run", config, **ranks, CODE="75")
    for starts in range(1, 4):
        job.wait_for("exit code 75", times=2 * starts)
        job.start_now()
    assert job.end() == "FAILED 1:0", job.said()
    assert "the job ended 4 times without a new checkpoint; raise --time" in job.said()


def test_a_job_whose_tasks_are_not_the_scripts(
    cluster: Cluster, config: Path, tmp_path: Path, ranks: dict[str, str]
) -> None:
    """Three tasks on two nodes: the numbers are the step's."""
    options = ("--nodes=2", "--ntasks=3", "--ntasks-per-node=2", "--gpus-per-node=2", "-c1")
    job = submit(cluster, "train.sbatch", tmp_path / "run", config, options=options, **ranks)
    assert job.end() == "COMPLETED 0:0", job.said()
    numbers = [line.split()[0] for line in (tmp_path / "ranks").read_text().splitlines()]
    assert sorted(numbers) == ["0", "1", "2"]
