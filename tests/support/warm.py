"""Programs that start in a fraction of a second: forks of one process that has their imports.

The process is started on first use, and ends with the one that runs the tests.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from commandline import installed
from groups import Group
from ranks import environment_without_launcher
from warm_server import PLAIN_USER

_SERVER = Path(__file__).with_name("warm_server.py")
_LONGEST_COMMAND = 4000  # bytes


@cache
def _server() -> Path:
    """Start the process that forks; return the folder of its socket and of exit codes."""
    kept = tempfile.TemporaryDirectory(prefix="warm-")
    folder = Path(kept.name)
    command = [sys.executable, _SERVER, folder / "socket", "x" * _LONGEST_COMMAND]
    server = Group(command, environment_without_launcher(), folder / "log")

    def end() -> None:
        server.kill()
        kept.cleanup()

    atexit.register(end)
    assert server.wait_for((folder / "socket").exists, 400), server.said()
    return folder


class WarmGroup(Group):
    """A Group that is forked: an installed command, a script of Python or a module."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        out: Path,
        err: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._log = err or out
        for path in (out, self._log):
            path.touch()
        asked = {
            "command": [*map(str, command)], "environment": dict(environment), "out": str(out),
            "err": str(self._log), "cwd": str(cwd or os.getcwd()),
        }  # fmt: skip
        folder = _server()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "socket"))
            with client.makefile("rw") as stream:
                stream.write(json.dumps(asked) + "\n")
                stream.flush()
                self.pid = int(stream.readline())
        self._code_file = folder / str(self.pid)

    def code(self) -> int | None:
        """Return the exit code, -N after signal N; None while the program runs."""
        return int(self._code_file.read_text()) if self._code_file.exists() else None

    def send(self, number: int) -> None:
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill what still runs, the program or what it left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait_for(lambda: self.code() is not None, 60)


def vse_scale(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as `commandline.vse_scale` does."""
    command = [installed("vse-scale"), *arguments]
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        with WarmGroup(command, environment_without_launcher(), out, err) as group:
            code = group.wait(timeout)
        said = (path.read_text(errors="replace") for path in (out, err))
        return subprocess.CompletedProcess(command, code, *said)


def training(ranks: int, log: Path, *arguments: str | Path, plain_user: bool = False) -> WarmGroup:
    """Start ``vse-scale train`` in the background, both outputs in ``log``.

    A ``plain_user`` obeys permissions, root or not.
    """
    command = [installed("vse-scale"), "train", "--ranks", str(ranks), *arguments]
    environment = environment_without_launcher() | ({PLAIN_USER: "1"} if plain_user else {})
    return WarmGroup(command, environment, log)
