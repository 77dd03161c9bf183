"""Programs that start in a fraction of a second: forks of one process that has their imports.

The process is started on first use, and ends with the one that runs the tests.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import commandline
from commandline import installed
from groups import Group
from ranks import environment_without_launcher
from warm_server import PLAIN_USER

_SERVER = Path(__file__).with_name("warm_server.py")
_LONGEST_COMMAND = 4000  # bytes
_ENVIRONMENT = environment_without_launcher()  # as it is before a test changes it for itself


@cache
def _server() -> Path:
    """Start the process that forks; return the folder of its socket and of exit codes."""
    folder, owner = Path(tempfile.mkdtemp(prefix="warm-")), os.getpid()
    command = [sys.executable, _SERVER, folder / "socket", "x" * _LONGEST_COMMAND]
    server = Group(command, _ENVIRONMENT, folder / "log")

    def end() -> None:
        if os.getpid() == owner:  # not a fork of a test's
            server.kill()
            shutil.rmtree(folder)

    atexit.register(end)
    assert server.wait_for((folder / "socket").exists, 400), server.said()
    return folder


def _ask(**asked: object) -> str:
    """Send the process that forks one request; return its answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(_server() / "socket"))
        with client.makefile("rw") as stream:
            stream.write(json.dumps(asked) + "\n")
            stream.flush()
            return stream.readline()


class WarmGroup(Group):
    """A Group that is forked: an installed command, a script of Python or a module."""

    _numbers = itertools.count()  # a number of a process may come again

    def _begin(
        self, command: list[str], environment: Mapping[str, str], out: Path, cwd: Path | None
    ) -> int:
        for path in (out, self._log):
            path.touch()
        self._code_file = _server() / f"code-{next(self._numbers)}"
        self._buried = False
        return int(
            _ask(
                command=command, environment=dict(environment), out=str(out), err=str(self._log),
                cwd=str(cwd or os.getcwd()), code=str(self._code_file),
            )
        )  # fmt: skip

    def code(self) -> int | None:
        """Return the exit code, -N after signal N; None while the program runs."""
        return int(self._code_file.read_text()) if self._code_file.exists() else None

    def kill(self) -> None:
        """Kill what still runs, the program or what it left behind."""
        if not self._buried:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has not made the group yet, or has ended
                os.kill(self.pid, signal.SIGKILL)
            self.wait_for(lambda: self.code() is not None, 60)
            _ask(bury=self.pid)
            self._buried = True


def vse_scale(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as `commandline.vse_scale` does."""
    command = [installed("vse-scale"), *arguments]
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        with WarmGroup(command, environment_without_launcher(), out, err) as group:
            code = group.wait(timeout)
        said = (path.read_text(errors="replace") for path in (out, err))
        return subprocess.CompletedProcess(command, code, *said)


def training(ranks: int, log: Path, *arguments: str | Path, plain_user: bool = False) -> Group:
    """Start ``vse-scale train`` in the background, both outputs in ``log``.

    A ``plain_user`` obeys permissions, root or not.
    """
    more = {PLAIN_USER: "1"} if plain_user else {}
    return commandline.training(ranks, log, *arguments, start=WarmGroup, more=more)
