"""Start the ranks of a test as a launcher would, each a process of its own on this machine."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from groups import Group

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Said:
    """The outputs of one rank.

    Attributes:
        out: Standard output.
        err: Standard error.
    """

    out: str
    err: str


def run_ranks(
    ranks: int,
    *command: str | Path,
    timeout: float = 600,
    cwd: Path | Sequence[Path] | None = None,
    start: type[Group] = Group,
) -> list[Said]:
    """Run ``command`` once per rank and wait for all of them.

    Args:
        ranks: How many processes.
        command: What Python is given: a script, "-m" and a module, or "-c" and code, and arguments;
            an installed command is a script too.
        timeout: Seconds for all of them together.
        cwd: The folder they run in, or one for each.
        start: How: a `warm.WarmGroup` lacks the seconds of imports.

    Returns:
        The outputs by rank.

    Raises:
        AssertionError: a rank failed, with the outputs of the first to fail, or time was up.
    """
    port = free_port()
    folders = [cwd] * ranks if cwd is None or isinstance(cwd, Path) else list(cwd)
    with tempfile.TemporaryDirectory(prefix="ranks-") as kept:
        outputs = [(Path(kept, f"{rank}.out"), Path(kept, f"{rank}.err")) for rank in range(ranks)]
        with ExitStack() as started:
            groups = [
                started.enter_context(
                    start(
                        [sys.executable, *command],
                        rank_environment(rank, ranks, port),
                        *outputs[rank],
                        cwd=folders[rank],
                    )
                )
                for rank in range(ranks)
            ]
            failed = _first_to_fail(groups, time.monotonic() + timeout)
        said = [Said(*(path.read_text(errors="replace") for path in pair)) for pair in outputs]
    if failed is not None:
        rank, why = failed
        raise AssertionError(
            f"rank {rank} of {ranks} {why}:\n{said[rank].out[-2000:]}\n{said[rank].err[-6000:]}"
        )
    return said


def _first_to_fail(groups: Sequence[Group], deadline: float) -> tuple[int, str] | None:
    """Wait for all; return the rank that failed first and how, or None where none did."""
    running = set(range(len(groups)))
    while running:
        for rank in sorted(running):
            code = groups[rank].code()
            if code:
                # The others may wait for it in a collective, and would tell no more than that.
                return rank, f"failed first, with exit code {code}"
            if code == 0:
                running.remove(rank)
        if running and time.monotonic() > deadline:
            return min(running), "was still running when time was up"
        time.sleep(_POLL_SECONDS)
    return None


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment in which a launcher starts a rank; rank 0 listens on ``port``."""
    return os.environ | _set_by_launcher(rank, ranks, port) | {"OMP_NUM_THREADS": "1"}


def environment_without_launcher() -> dict[str, str]:
    """Return the environment of a user's shell: one thread, and nothing that makes a rank."""
    added = _set_by_launcher(0, 1, 0)
    kept = {name: value for name, value in os.environ.items() if name not in added}
    return kept | {"OMP_NUM_THREADS": "1"}


def _set_by_launcher(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
