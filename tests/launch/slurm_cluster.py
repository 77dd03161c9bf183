"""SLURM for real: a controller and two nodes, each a network namespace with a name of its own.

Debian's slurmd is built for one node a host (no ``--enable-multiple-slurmd``), which it tells by
the host's name: hence a namespace of names beside that of the network.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from groups import Group
from hosts import Cable, Host
from ranks import environment_without_launcher

NODES = ("n1", "n2")
_SBIN = Path("/usr/sbin")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# Debian's packages slurm-wlm and munge. Nobody pays for what a test uses, and nothing is weighed:
# no accounting, no cgroups. Two tasks fit on a node, whatever the machine has.
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={first}({address})
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
UnkillableStepTimeout=30
MinJobAge=3600
InactiveLimit=0
MessageTimeout=60
GresTypes=gpu
NodeName=n1 NodeAddr={address} CPUs=4 RealMemory=1000 Gres=gpu:2
NodeName=n2 NodeAddr={other} CPUs=4 RealMemory=1000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


class Cluster:
    """Two running nodes.

    Attributes:
        folder: logs and state of the daemons, and the configuration.
    """

    def __init__(self, folder: Path, hosts: tuple[Host, Host]) -> None:
        self.folder, self._hosts = folder, hosts

    def command(self, *command: str | Path, node: int = 0) -> list[str]:
        """Return what runs ``command`` on a node, under the node's name and table of hosts."""
        inside = (
            f'hostname {NODES[node]} && mount --bind {self.folder}/hosts /etc/hosts && exec "$@"'
        )
        host = self._hosts[node].name
        return [
            *("ip", "netns", "exec", host, "unshare", "-u", "-m", "sh", "-c", inside, "sh"),
            *map(str, command),
        ]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a user who is logged in on the first node."""
        environment = environment_without_launcher() | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return environment | dict(more or {})

    def run(
        self, *command: str | Path, cwd: Path | None = None, timeout: float = 200, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the first node to its end."""
        return subprocess.run(
            self.command(*command), env=self.environment(more), cwd=cwd,
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def ask(self, *command: str, patience: float = 0.0) -> str:
        """Return what a command of SLURM says, tried for ``patience`` seconds while it fails."""
        deadline = time.monotonic() + patience
        while (done := self.run(*command)).returncode != 0:
            assert time.monotonic() < deadline, f"{command}: {done.stderr}\n{self.logs()}"
            time.sleep(0.5)
        return done.stdout

    def state(self, job: str) -> str:
        """Return a job's state and exit code, such as ``COMPLETED 0:0``."""
        shown = self.ask("scontrol", "-o", "show", "job", job, patience=120)
        found = dict(part.split("=", 1) for part in shown.split() if "=" in part)
        return f"{found['JobState']} {found['ExitCode']}"

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in ``folder``; skip the test where it cannot be."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian's packages slurm-wlm and munge)")
    if os.getuid() != 0:
        pytest.skip("needs root, for nodes with a name and a network of their own")
    with ExitStack() as stack:
        hosts = stack.enter_context(Cable())
        folder.mkdir(parents=True)
        first, second = (host.address for host in hosts)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{first} n1\n{second} n2\n")
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(first=NODES[0], address=first, other=second, folder=folder)
        )
        for number in (0, 1):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name in NODES:
            (folder / f"spool-{name}").mkdir()
        cluster = Cluster(folder, hosts)
        _start(cluster, stack)
        yield cluster


def _search_path() -> str:
    return f"{os.environ['PATH']}:{_SBIN}"


def _start(cluster: Cluster, stack: ExitStack) -> None:
    folder = cluster.folder
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "state").mkdir()

    def daemon(command: list[str | Path], log: str, node: int | None = None) -> Group:
        whole = command if node is None else cluster.command(*command, node=node)
        return stack.enter_context(Group(whole, cluster.environment(), folder / log))

    munge = [
        *(_SBIN / "munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
        *(f"--key-file={key}", f"--pid-file={folder}/munged.pid", "--num-threads=2"),
        *(f"--log-file={folder}/munged-own.log", f"--seed-file={folder}/munged.seed"),
    ]
    started = [daemon(munge, "munged.log")]
    _wait(cluster, started, (folder / "munge.socket").exists)
    started.append(daemon([_SBIN / "slurmctld", "-D"], "ctld.log", node=0))
    started += [daemon([_SBIN / "slurmd", "-D"], f"{NODES[n]}.log", node=n) for n in (0, 1)]
    idle = ["idle"] * len(NODES)
    _wait(
        cluster, started,
        lambda: cluster.run("sinfo", "-h", "-N", "-o", "%t").stdout.split() == idle,
    )  # fmt: skip


def _wait(cluster: Cluster, started: list[Group], condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; skip the test where a daemon cannot live on this machine."""
    deadline = time.monotonic() + 120
    while not condition():
        if any(process.code() is not None for process in started):
            logs = cluster.logs()
            # What they say of a fault in ours.
            assert not re.search(r"pars(e|ing)|configuration file", logs, re.IGNORECASE), logs
            pytest.skip(f"SLURM does not start here:\n{logs}")
        assert time.monotonic() < deadline, f"SLURM's daemons are not ready:\n{cluster.logs()}"
        time.sleep(0.2)
