"""Joining the processes that a launcher started, with DeepSpeed and without it."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from vse_scale.console import heartbeat
from vse_scale.world.processes import ALONE, Processes, World

__all__ = [
    "ALONE", "Processes", "World", "bound_waits", "cores_per_rank", "free_port", "join_world",
    "joined", "leave_world", "local_device",
]  # fmt: skip

_EVALUATION_TIMEOUT = timedelta(hours=2)  # one process may still encode when the others are done


def join_world(timeout_seconds: float) -> World:
    """Join the process group that the launcher describes in the environment, to train.

    Without a launcher this process is a world of its own. A rank that stays silent in a collective
    for ``timeout_seconds`` ends the run. The group stays until `leave_world`: DeepSpeed keeps hold
    of its groups, and a second run in a process needs the same ones.
    """
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
        )  # fmt: skip
    device = local_device()
    if device.type == "cpu":
        _share_cores()
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
            verbose=False,
        )
    return World.of_group(None, device)


@contextmanager
def joined() -> Iterator[World]:
    """Join the process group that a launcher describes in the environment, for the block.

    This is for evaluation, which needs no DeepSpeed. Without a launcher this process is alone.
    """
    device = local_device()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device=device)
        return
    dist.init_process_group(_backend(device), timeout=_EVALUATION_TIMEOUT)
    try:
        yield World.of_group(None, device)
    finally:
        leave_world()


def leave_world() -> None:
    """Take the process group down, before the process ends."""
    dist.destroy_process_group()


def local_device() -> torch.device:
    """Return this process's GPU, made the current one; the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


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


def _share_cores() -> None:
    """Give each rank of this machine its share of the cores, unless the user said how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
        torch.set_num_threads(cores_per_rank(ranks_here))
