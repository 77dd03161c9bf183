"""A program that a test starts, together with everything that the program starts in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_POLL_SECONDS = 0.002  # a checkpoint is half-written for no longer than some of these


class Group:
    """A running program whose outputs go to files. Leaving its context kills it and its children.

    Args:
        command: The program and its arguments.
        environment: All of it.
        out: The file that standard output is appended to.
        err: The file of standard error; None: ``out``.
        cwd: The folder to run in.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        out: Path,
        err: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._log = err or out
        self.pid = self._begin([*map(str, command)], environment, out, cwd)

    def _begin(
        self, command: list[str], environment: Mapping[str, str], out: Path, cwd: Path | None
    ) -> int:
        """Start the program as the first of a group of its own; return its number."""
        with out.open("ab") as standard, self._log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                stdout=standard, stderr=errors, start_new_session=True,
            )  # fmt: skip
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.kill()

    def said(self) -> str:
        """Return the log so far: standard error, or both outputs where they share a file."""
        return self._log.read_text(errors="replace")

    def code(self) -> int | None:
        """Return the exit code, -N after signal N; None while the program runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Not reaped: until `kill` nobody else can get its number, which is that of the group.
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def wait(self, timeout: float) -> int:
        """Return the exit code; fail with the log after ``timeout`` seconds."""
        assert self.wait_for(lambda: self.code() is not None, timeout)
        code = self.code()
        assert code is not None
        return code

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``condition`` holds; False where the program ended before that."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.code() is not None:
                return condition()
            assert time.monotonic() < deadline, f"time is up; it said:\n{self.said()[-4000:]}"
            time.sleep(_POLL_SECONDS)
        return True

    def wait_for_words(self, words: str, times: int = 1, timeout: float = 600) -> bool:
        """Wait until the log has ``words`` so often; False where the program ended before that."""
        return self.wait_for(lambda: self.said().count(words) >= times, timeout)

    def send(self, number: int) -> None:
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    def send_all(self, number: int) -> None:
        """Send a signal to the program and its children."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill what still runs, the program or what it left behind."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
