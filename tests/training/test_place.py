"""Whose process is it: one table of what launchers set, and what is made of it.

After Lightning-AI/pytorch-lightning#4389 and #13639 (ranks of srun and MPI that are there twice),
pytorch/ignite#2048 (variables of two launchers), Lightning-AI/pytorch-lightning#16730 (a shell of a
SLURM job taken for a task), and deepspeedai/DeepSpeed#1331, #5278 and vllm-project/vllm#41848 (GPUs
named by number, UUID and MIG slice).
"""

from __future__ import annotations

import pytest
from commandline import installed
from ranks import environment_without_launcher

from vse_scale.errors import LaunchError
from vse_scale.world.devices import choose_slice, count_slices, visible_devices
from vse_scale.world.place import Place, find_place, first_host, is_main

MEET = {"MASTER_ADDR": "n1", "MASTER_PORT": "3000"}
TORCH = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEET}
JOB = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "gpu-[03-04]",
}  # fmt: skip
TASK = {**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "1",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def place(environment: dict[str, str]) -> tuple[int, int, int]:
    found = find_place(environment)
    return found.rank, found.ranks, found.local_rank


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCH, (1, 4, 1)),
        (TASK, (3, 4, 1)),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "8"}, (3, 8, 1)),
        (OPEN_MPI, (1, 2, 1)),
        (HYDRA, (1, 2, 1)),
        # srun --mpi=pmix
        ({**TASK, "PMIX_RANK": "3"}, (3, 4, 1)),
        # srun --mpi=pmi2, or MpiDefault=pmi2
        ({**TASK, "PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4, 1)),
        # mpirun in a SLURM job starts its helpers by srun, one a node.
        ({**TASK, **OPEN_MPI}, (1, 2, 1)),
        # A wrapper below srun that exports what SLURM says.
        ({**TASK, **TORCH, "RANK": "3"}, (3, 4, 1)),
        # torchrun, which orders nodes as it likes, and DeepSpeed's launcher below a task a node.
        ({**TASK, **TORCH, "WORLD_SIZE": "32", "TORCHELASTIC_RUN_ID": "x"}, (1, 32, 1)),
        ({**TASK, **TORCH, "WORLD_SIZE": "7", "RANK": "5", "CROSS_RANK": "3"}, (5, 7, 1)),
        # A rank by hand below a task a node.
        ({**OPEN_MPI, **TORCH, "RANK": "3", "LOCAL_RANK": "1"}, (3, 4, 1)),
        # Some of it from one, some from the other, and all of it the same.
        ({**TASK, "WORLD_SIZE": "4"}, (3, 4, 1)),
    ],
)
def test_the_rank_is_what_the_launcher_says(
    environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    assert place(environment) == expected
    assert find_place(environment).launched


@pytest.mark.parametrize(
    "environment",
    [
        {},
        MEET,
        {"WORLD_SIZE": "1"},
        # The shells of sbatch and salloc, whose steps have numbers of their own.
        JOB,
        {name: value for name, value in JOB.items() if name != "SLURM_PROCID"},
        {**JOB, "SLURM_STEP_ID": "4294967291"},
        {**JOB, "SLURM_STEP_ID": "4294967290"},
        {**TASK, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},  # srun --pty bash
    ],
)
def test_a_shell_is_no_rank(environment: dict[str, str]) -> None:
    found = find_place(environment)
    assert (found.rank, found.ranks, found.launched, found.master) == (0, 1, False, None)
    shell = "SLURM_NTASKS" in environment and environment["SLURM_NTASKS"] != "1"
    assert found.idle_tasks == (4 if shell else 0)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        # Several tasks without a rank, or without a place to meet.
        ({"SLURM_NTASKS": "4"}, ["SLURM_NTASKS is 4", "RANK"]),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"}, ["MASTER_ADDR and"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_COMM_WORLD_SIZE is 2", "RANK"]),
        ({k: v for k, v in OPEN_MPI.items() if "LOCAL_SIZE" not in k}, ["MASTER_ADDR"]),
        ({"PMIX_RANK": "1"}, ["PMIX_RANK is 1", "WORLD_SIZE"]),
        # Half a set.
        ({"RANK": "0"}, ["RANK is 0", "WORLD_SIZE"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE is 2", "RANK and LOCAL_RANK"]),
        ({"LOCAL_RANK": "1"}, ["LOCAL_RANK is 1", "RANK and WORLD_SIZE"]),
        ({"RANK": "1", "WORLD_SIZE": "2", **MEET}, ["LOCAL_RANK"]),
        ({n: v for n, v in TORCH.items() if n != "MASTER_PORT"}, ["MASTER_PORT"]),
        # Two that contradict each other.
        ({**OPEN_MPI, **TORCH, "RANK": "0", "WORLD_SIZE": "2"}, ["RANK is 0", "WORLD_RANK is 1"]),
        ({**TASK, **TORCH}, ["RANK is 1", "SLURM_PROCID is 3"]),
        ({**TASK, **TORCH, "RANK": "0", "WORLD_SIZE": "1"}, ["WORLD_SIZE is 1", "SLURM_NTASKS is"]),
        ({**OPEN_MPI, "PMIX_RANK": "0"}, ["PMIX_RANK is 0", "OMPI_COMM_WORLD_RANK is 1"]),
        ({**TASK, "WORLD_SIZE": "8"}, ["WORLD_SIZE is 8", "SLURM_NTASKS is 4"]),
        # Processes of an mpirun that names no local ranks, one of them below each task.
        ({**TASK, "PMI_RANK": "1", "PMI_SIZE": "4"}, ["PMI_RANK is 1", "LOCAL_RANK"]),
        ({**JOB, "PMI_RANK": "0", "PMI_SIZE": "4"}, ["PMI_RANK is 0", "LOCAL_RANK"]),
        # No numbers, or impossible ones.
        ({**TORCH, "RANK": "one"}, ["RANK is 'one'"]),
        ({**TORCH, "RANK": "-1"}, ["RANK is '-1'"]),
        ({**TORCH, "RANK": "4"}, ["RANK is 4, and WORLD_SIZE 4"]),
        ({**TORCH, "MASTER_PORT": "70000"}, ["MASTER_PORT is '70000'"]),
        ({**TORCH, "MASTER_PORT": "http"}, ["MASTER_PORT is 'http'"]),
    ],
)
def test_what_is_no_rank_is_one_line(environment: dict[str, str], words: list[str]) -> None:
    with pytest.raises(LaunchError) as caught:
        find_place(environment)
    assert all(part in str(caught.value) for part in words), caught.value
    assert "\n" not in str(caught.value)
    assert is_main(environment)  # it is heard


@pytest.mark.parametrize(
    ("node", "tasks", "here"),
    [("0", "2(x2),1", 2), ("2", "2(x2),1", 1), ("1", "3,2", 2), ("0", "4", 4), ("3", "2(x2)", 8)],
)
def test_a_step_may_have_other_tasks_on_a_node_than_were_asked_for(
    node: str, tasks: str, here: int
) -> None:
    """Lightning-AI/pytorch-lightning#20391, ACEsuit/mace#828."""
    asked = {**TASK, "SLURM_NTASKS_PER_NODE": "8", "SLURM_NODEID": node}
    assert find_place({**asked, "SLURM_STEP_TASKS_PER_NODE": tasks}).local_ranks == here


def test_what_the_line_names_is_enough() -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert find_place({**environment, **MEET}).master == ("n1", 3000)
    assert not find_place({}).launched


def test_tasks_meet_on_the_first_node_of_their_step() -> None:
    host, port = find_place(TASK).master or ("", 0)
    assert host == "gpu-03"
    assert 20_000 <= port < 30_000
    assert find_place({**TASK, "SLURM_PROCID": "2"}).master == (host, port)
    assert find_place({**TASK, "SLURM_STEP_ID": "1"}).master != (host, port)
    assert find_place({**TASK, "PMI_RANK": "3", "PMI_SIZE": "4"}).master == (host, port)
    alone = find_place({**TASK, "SLURM_JOB_NODELIST": "gpu-03"}).master
    assert alone == ("127.0.0.1", port)
    assert find_place({**TASK, **MEET}).master == ("n1", 3000)
    for environment in (OPEN_MPI, HYDRA):
        found = find_place(environment).master
        assert found is not None
        assert found[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu-[01-04,7],big", "gpu-01"),
        ("rack[2,5]-node[07-09],n1", "rack2-node07"),
        ("[a,b]x", "ax"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_torch_and_deepspeed_are_told_the_same() -> None:
    found = find_place(TASK)
    told = found.variables
    assert told == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "1",
        "MASTER_ADDR": "gpu-03", "MASTER_PORT": str((found.master or ("", 0))[1]),
    }  # fmt: skip
    assert place({**TASK, **told}) == place(TASK)
    assert Place().variables == {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1",
    }  # fmt: skip


UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-5d1a"
SLICES = "MIG-377e0049-554c-540b-93c6-d0976f8426cb,MIG-1"


@pytest.mark.parametrize(
    ("visible", "ranks", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("2,3", 2, ["2", "3"]),
        (" 6, 2,4", 2, ["6", "2"]),
        (UUIDS, 2, UUIDS.split(",")),
        (SLICES, 2, SLICES.split(",")),
        ("", 2, ["", ""]),
    ],
)
def test_ranks_get_the_gpus_that_the_user_named(
    visible: str | None, ranks: int, expected: list[str]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_devices(environment, ranks) == expected


def test_a_rank_sees_its_own_slice_and_every_whole_gpu() -> None:
    for visible, local_rank, expected in (
        (SLICES, 1, "MIG-1"),
        (UUIDS, 1, UUIDS),
        ("0,1", 1, "0,1"),
    ):
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        choose_slice(environment, local_rank)
        assert environment["CUDA_VISIBLE_DEVICES"] == expected
    assert count_slices({"CUDA_VISIBLE_DEVICES": SLICES}) == 2
    assert count_slices({}) == 0


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["-m", "vse_scale.training"], {"SLURM_NTASKS": "4"}),
        (["-m", "vse_scale.training"], JOB),
        (["-m", "vse_scale.cli", "train"], {"RANK": "0", **OPEN_MPI}),
        (["-m", "vse_scale.cli", "train", "--ranks", "2"], TORCH),
    ],
)
def test_a_start_that_cannot_be_is_one_line_before_anything_is_written(
    arguments: list[str], environment: dict[str, str], tmp_path
) -> None:
    import subprocess

    done = subprocess.run(
        [installed("python"), *arguments, "--config", "small", f"run.dir={tmp_path / 'run'}"],
        env=environment_without_launcher() | environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("vse-scale: error: ")
    assert not (tmp_path / "run").exists()
