"""Joining the processes that a launcher started, with DeepSpeed and without it."""

from __future__ import annotations

import ctypes
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from vse_scale.console import heartbeat, log
from vse_scale.errors import LaunchError
from vse_scale.world.place import Place, find_place
from vse_scale.world.processes import ALONE, Processes, World

__all__ = [
    "ALONE", "Processes", "World", "bound_waits", "cores_per_rank", "free_port", "join_world",
    "joined", "leave_world", "local_device",
]  # fmt: skip

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_EVALUATION_TIMEOUT = timedelta(hours=2)  # one process may still encode when the others are done


def join_world(timeout_seconds: float) -> World:
    """Join the process group that the launcher describes in the environment, to train.

    Without a launcher this process is a world of its own. A rank that stays silent in a collective
    for ``timeout_seconds`` ends the run. The group stays until `leave_world`: DeepSpeed keeps hold
    of its groups, and a second run in a process needs the same ones.

    Raises:
        LaunchError: the launcher's variables contradict each other, or do not say where to meet.
    """
    place = _settled()
    device = _device_of(place)
    if device.type == "cpu":
        _share_cores(place)
        keep_freed_memory(os.environ)
    _share_interface()
    with heartbeat("joining the other ranks"):
        import deepspeed

        # It warns of optimizers it has not tried; ours is tested under every stage.
        deepspeed.utils.logger.setLevel("ERROR")
        # DeepSpeed's use of names that torch is about to retire is not the user's concern.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        # On CPUs it would compile an all-reduce for inference through shared memory: a minute of
        # every new machine, a lock that a killed process leaves behind for all after it, and 69 MB
        # of memory per rank and run that nobody frees. Training never calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend=_backend(device),
            timeout=timedelta(seconds=timeout_seconds),
            auto_mpi_discovery=False,
            verbose=False,
        )
    return replace(World.of_group(None, device), local_rank=place.local_rank)


@contextmanager
def joined() -> Iterator[World]:
    """Join the process group that a launcher describes in the environment, for the block.

    This is for evaluation, which needs no DeepSpeed. Without a launcher this process is alone.

    Raises:
        LaunchError: the launcher's variables contradict each other, or do not say where to meet.
    """
    if find_place(os.environ).ranks == 1:
        yield World(device=local_device())
        return
    device = _device_of(_settled())
    dist.init_process_group(_backend(device), timeout=_EVALUATION_TIMEOUT)
    try:
        yield World.of_group(None, device)
    finally:
        leave_world()


def leave_world() -> None:
    """Take the process group down, before the process ends."""
    dist.destroy_process_group()


def local_device() -> torch.device:
    """Return this process's GPU, made the current one; the CPU where there is no GPU.

    Raises:
        LaunchError: this machine has fewer GPUs than ranks.
    """
    return _device_of(find_place(os.environ))


def _device_of(place: Place) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus, index = torch.cuda.device_count(), place.local_rank
    if index >= gpus:
        # SLURM and MPI can show each task a GPU of its own, which is number 0 there.
        if gpus > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
            raise LaunchError(
                f"rank {place.rank} is number {index} on its machine, which shows it {gpus} GPU"
                f"{'s'[: gpus - 1]}; start one rank per GPU, or name more in CUDA_VISIBLE_DEVICES"
            )
        index = 0
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed takes the GPU of this number
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _settled() -> Place:
    """Find this process's place, and tell it to torch and DeepSpeed, which read the environment."""
    place = find_place(os.environ)
    if place.idle_tasks > 1:
        log.info(
            "this SLURM job has %d tasks, and this process is its shell: it trains alone; srun "
            "starts all tasks", place.idle_tasks,
        )  # fmt: skip
    variables = place.variables
    if place.master is None:
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    else:
        _check_host(place.master[0])
    os.environ.update(variables)
    return place


def _check_host(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError) as error:
        # A name server that does not answer now may do so when torch asks again and again.
        if getattr(error, "errno", socket.EAI_NONAME) == socket.EAI_AGAIN:
            return
        raise LaunchError(
            f"MASTER_ADDR is {host[:80]!r}, which no name server knows here; export the host name "
            "or the address of rank 0"
        ) from error


def _share_interface() -> None:
    """Have gloo, by which GPU runs gather a checkpoint, take the network that NCCL was told of.

    By itself it takes the one that the host's name leads to, often the machine's own.
    """
    name = os.environ.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    if name in psutil.net_if_addrs():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def bound_waits(timeout_seconds: float) -> None:
    """Let no collective of any group that there is now wait longer for a silent rank.

    DeepSpeed reduces in groups of its own, which it makes with torch's default: half an hour on
    gloo, ten minutes on NCCL.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)


def cores_per_rank(ranks: int) -> int:
    """Return the share of this machine's cores of each of ``ranks``, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _share_cores(place: Place) -> None:
    """Give each rank of this machine its share of the cores, unless the user said how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores_per_rank(place.local_ranks))


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Have glibc keep what is freed, up to 2 GiB, for the next step to use again.

    By itself it returns the memory of a step to the kernel, and in the next step each page of it
    is mapped and cleared anew, a tenth of the processor time of a step on a CPU. An
    allocator that ``environment`` sets is left alone, and so are other C libraries.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environment):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the most; larger blocks are mapped each time
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
