"""The place of this process among those that a launcher started, out of the environment.

torchrun, DeepSpeed's launcher, SLURM's srun and the launchers of MPI each name their processes in
variables of their own. This module imports no torch: a command asks before it loads any.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vse_scale.errors import LaunchError

_PORTS = (20_000, 10_000)  # first and number of the ports that ranks without one meet on
_TORCH_PORT = 29_500  # torch's own default
# Steps of a job that are no tasks of srun: the batch script, an interactive shell, and others.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Set by launchers that start several ranks below one task of another launcher.
_INNER_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")


@dataclass(frozen=True)
class Place:
    """One process among ``ranks``.

    Attributes:
        rank: of this process, from 0.
        ranks: the number of processes.
        local_rank: among those of this machine.
        local_ranks: the number of processes on this machine; 1 where nobody says.
        master: host and port where the ranks meet; None for a process that is alone.
        launched: whether a launcher started it as a rank.
        launcher_is_parent: whether that is this process's parent, and not its parent's.
        idle_tasks: of the SLURM job in whose shell this process is: tasks that are not started.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    master: tuple[str, int] | None = None
    launched: bool = False
    launcher_is_parent: bool = False
    idle_tasks: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """The variables that torch and DeepSpeed read, without those of the rendezvous if alone."""
        found: dict[str, object] = {
            "RANK": self.rank, "WORLD_SIZE": self.ranks,
            "LOCAL_RANK": self.local_rank, "LOCAL_SIZE": self.local_ranks,
        }  # fmt: skip
        if self.master is not None:
            found |= {"MASTER_ADDR": self.master[0], "MASTER_PORT": self.master[1]}
        return {name: str(value) for name, value in found.items()}


@dataclass(frozen=True)
class _Launcher:
    """The variables of one kind of launcher; several names for a value: the first that is set."""

    rank: tuple[str, ...]
    ranks: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_ranks: tuple[str, ...] = ()


_TORCH = _Launcher(
    ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
)  # fmt: skip
_OPEN_MPI = _Launcher(
    ("OMPI_COMM_WORLD_RANK",), ("OMPI_COMM_WORLD_SIZE",),
    ("OMPI_COMM_WORLD_LOCAL_RANK",), ("OMPI_COMM_WORLD_LOCAL_SIZE",),
)  # fmt: skip
_MPICH = _Launcher(
    ("PMI_RANK",), ("PMI_SIZE",), ("MPI_LOCALRANKID",), ("MPI_LOCALNRANKS",)
)  # fmt: skip
_SLURM = _Launcher(
    ("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
    ("SLURM_LOCALID",), ("SLURM_NTASKS_PER_NODE",),
)  # fmt: skip
# PMIx names the rank alone: the rest is said by Open MPI or SLURM, which use it.
_PMIX_RANK = "PMIX_RANK"


@dataclass(frozen=True)
class _Found:
    """The values of one launcher, each with the variable that it came from."""

    rank: tuple[str, int] | None = None
    ranks: tuple[str, int] | None = None
    local_rank: tuple[str, int] | None = None
    local_ranks: tuple[str, int] | None = None


def find_place(environment: Mapping[str, str]) -> Place:
    """Return the place of the process with these variables; alone where no launcher set any.

    Raises:
        LaunchError: variables are missing, no numbers, or contradict each other.
    """
    torch = _read(_TORCH, environment)
    outer, idle = _outer(environment)
    _check_pmix(environment, torch, outer)
    if torch.rank is None and torch.ranks is not None and torch.ranks[1] == 1:
        torch = _Found(local_rank=torch.local_rank)  # says nothing that is not so without it
    named = [found.rank or found.ranks for found in (torch, outer)]
    if not any(named):
        if torch.local_rank is not None:
            raise _half(*torch.local_rank, "RANK", "WORLD_SIZE")
        return Place(idle_tasks=idle)
    if torch.rank is not None and torch.ranks is not None:
        _check_outer(environment, torch, outer)
        found = torch
    else:
        found = _completed(torch, outer)
    return _placed(environment, found, outer)


def is_main(environment: Mapping[str, str]) -> bool:
    """Return whether the process with these variables speaks for all; so it does if in doubt."""
    try:
        return find_place(environment).rank == 0
    except LaunchError:
        return True


def _outer(environment: Mapping[str, str]) -> tuple[_Found, int]:
    """Return what MPI or else SLURM says, and the tasks of a job that is here no more than a shell.

    mpirun in a SLURM job starts its helpers by srun, whose variables the ranks then see too.
    """
    for launcher in (_OPEN_MPI, _MPICH):
        found = _read(launcher, environment)
        if found.rank is not None or found.ranks is not None:
            return (found if found.local_rank else _of_task(found, environment)), 0
    return _slurm(environment)


def _of_task(found: _Found, environment: Mapping[str, str]) -> _Found:
    """Return what SLURM says of its own task, which ``srun --mpi=pmi2`` gives MPI's names too."""
    slurm, _ = _slurm(environment)
    if not (slurm.rank and slurm.ranks and found.rank and found.ranks):
        return found
    same = (slurm.rank[1], slurm.ranks[1]) == (found.rank[1], found.ranks[1])
    return slurm if same else found


def _slurm(environment: Mapping[str, str]) -> tuple[_Found, int]:
    slurm = _read(_SLURM, environment)
    if here := _tasks_here(environment):
        slurm = replace(slurm, local_ranks=here)
    tasks = slurm.ranks[1] if slurm.ranks is not None else 1
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID") or ""
    if step.isdigit() and int(step) < _FIRST_SPECIAL_STEP:
        return slurm, 0
    first = slurm.rank is None or slurm.rank[1] == 0
    if first and "SLURM_JOB_ID" in environment:
        # The shells of sbatch and salloc have the job's variables, and stand for none of its tasks.
        return _Found(), tasks
    return (slurm if slurm.rank is not None or tasks > 1 else _Found()), 0


def _tasks_here(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the step's tasks on this node, out of SLURM's list for all nodes: ``2(x3),1``.

    SLURM_NTASKS_PER_NODE is what was asked for, if it was: a step may have other numbers.
    """
    name, node = "SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NODEID", "")
    before = int(node) if node.isdigit() else 0
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get(name, "")):
        if before < int(times or 1):
            return name, int(tasks)
        before -= int(times or 1)
    return None


def _read(launcher: _Launcher, environment: Mapping[str, str]) -> _Found:
    def number(names: tuple[str, ...]) -> tuple[str, int] | None:
        name = next((name for name in names if environment.get(name, "") != ""), None)
        if name is None:
            return None
        text = environment[name].strip()
        if not text.isascii() or not text.isdigit():
            raise LaunchError(f"{name} is {text[:40]!r}, not a number from 0; set or unset it")
        return name, int(text)

    return _Found(
        number(launcher.rank), number(launcher.ranks),
        number(launcher.local_rank), number(launcher.local_ranks),
    )  # fmt: skip


def _check_pmix(environment: Mapping[str, str], torch: _Found, outer: _Found) -> None:
    text = environment.get(_PMIX_RANK, "")
    if not text.isdigit():
        return
    if outer.rank is None:
        if torch.rank is None:
            raise _half(_PMIX_RANK, int(text), "RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif int(text) != outer.rank[1]:
        raise _contradiction((_PMIX_RANK, int(text)), outer.rank)


def _check_outer(environment: Mapping[str, str], torch: _Found, outer: _Found) -> None:
    """Refuse a RANK of another process than MPI's or SLURM's, unless a launcher below gave it."""
    if outer.rank is None or outer.ranks is None or _has_inner_launcher(environment):
        return
    assert torch.rank is not None
    assert torch.ranks is not None
    within, rest = divmod(torch.ranks[1], max(1, outer.ranks[1]))
    if rest or within == 0:
        raise _contradiction(torch.ranks, outer.ranks)
    if torch.rank[1] // within != outer.rank[1]:
        raise _contradiction(torch.rank, outer.rank)


def _has_inner_launcher(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in _INNER_LAUNCHERS)


def _completed(torch: _Found, outer: _Found) -> _Found:
    """Return the rank and the number of ranks, each from where it is said."""
    for ours, theirs in ((torch.rank, outer.rank), (torch.ranks, outer.ranks)):
        if ours is not None and theirs is not None and ours[1] != theirs[1]:
            raise _contradiction(ours, theirs)
    rank, ranks = outer.rank or torch.rank, outer.ranks or torch.ranks
    if rank is None:
        assert ranks is not None
        raise _half(*ranks, "RANK", "LOCAL_RANK")
    if ranks is None:
        raise _half(*rank, "WORLD_SIZE")
    return _Found(rank, ranks, torch.local_rank, torch.local_ranks)


def _placed(environment: Mapping[str, str], found: _Found, outer: _Found) -> Place:
    assert found.rank is not None
    assert found.ranks is not None
    (rank_name, rank), (ranks_name, ranks) = found.rank, found.ranks
    if rank >= ranks:
        raise LaunchError(
            f"{rank_name} is {rank}, and {ranks_name} {ranks}; ranks count from 0, set both right"
        )
    inner = _has_inner_launcher(environment)
    local = found.local_rank or (None if inner else outer.local_rank)
    locals_ = found.local_ranks or (None if inner else outer.local_ranks)
    if local is None and ranks > 1:
        raise _half(rank_name, rank, "LOCAL_RANK")
    return Place(
        rank=rank,
        ranks=ranks,
        local_rank=local[1] if local else 0,
        local_ranks=max(1, locals_[1]) if locals_ else 1,
        master=_master(environment, found, outer) if ranks > 1 or inner else None,
        launched=ranks > 1 or inner,
        launcher_is_parent=inner,
    )


def _master(environment: Mapping[str, str], found: _Found, outer: _Found) -> tuple[str, int]:
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise LaunchError(f"MASTER_PORT is {port[:40]!r}; set a port, 1 to 65535")
    own = _own_master(environment, outer)
    if own is None and not (host and port):
        assert found.rank is not None
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
        raise _half(*found.rank, *missing)
    default_host, default_port = own or ("", 0)
    return host or default_host, int(port) if port else default_port


def _own_master(environment: Mapping[str, str], outer: _Found) -> tuple[str, int] | None:
    """Return where tasks of SLURM, or of MPI on one machine, meet if nobody says."""
    first, count = _PORTS
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if outer.rank is not None and outer.rank[0] in _SLURM.rank and nodes:
        job = environment.get("SLURM_JOB_ID", "0")
        # A step that is started again does not wait for the port of the one before.
        name = f"{job}.{environment.get('SLURM_STEP_ID', '0')}"
        alone = not re.search(r"[\[,]", nodes)
        host = "127.0.0.1" if alone else first_host(nodes)
        return host, first + zlib.crc32(name.encode()) % count
    if outer.local_ranks and outer.ranks and outer.local_ranks[1] == outer.ranks[1]:
        names = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_PORT")
        job = next((environment[name] for name in names if environment.get(name)), "")
        port = first + zlib.crc32(job.encode()) % count if job else _TORCH_PORT
        return "127.0.0.1", port
    return None


def first_host(nodes: str) -> str:
    """Return the first of SLURM's list of hosts, such as ``gpu-01`` of ``gpu-[01-04,7],big``."""
    match = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match.group() if match else nodes)


def _half(name: str, value: int, *missing: str) -> LaunchError:
    more = " and ".join(missing)
    return LaunchError(
        f"{name} is {value}, and {more} {'is' if len(missing) == 1 else 'are'} not set: a process "
        f"of several that cannot find the others; export {more}, start it by torchrun or srun, "
        f"or unset {name} to train alone"
    )


def _contradiction(one: tuple[str, int], other: tuple[str, int]) -> LaunchError:
    return LaunchError(
        f"{one[0]} is {one[1]}, and {other[0]} is {other[1]}: two launchers that contradict each "
        f"other; unset {one[0]}, or start without the other launcher"
    )
