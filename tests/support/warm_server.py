"""A process that has imported all that training needs, and forks into the programs of tests.

Usage: warm_server.py SOCKET PADDING

An import of torch, DeepSpeed and DALI takes ten seconds of a core, and a start of a run takes three
of them: supervisor, launcher, rank. Each of these is a process of its own here too, a child of the
one that starts it, with its own arguments, environment and signals. It only lacks the ``exec``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "deepspeed.launcher.launch", "deepspeed.runtime.zero.muon.muon_optimizer", "nvidia.dali.fn",
    "tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer",
    "transformers.models.bert.modeling_bert", "vse_scale.cli",
    "vse_scale.training.supervisor", "vse_scale.training.trainer",
)  # fmt: skip
PLAIN_USER = "TESTS_PLAIN_USER"  # environment variable: obey permissions, as root does not
_POLL_SECONDS = 0.02
_RIGHTS = (1 << 1) | (1 << 2) | (1 << 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
_ARG_START, _ARG_END = 45, 46  # fields of /proc/self/stat behind the name, from 0


class Forked(subprocess.Popen):
    """A Popen that forks where this Python is to run a module, in place of starting it anew."""

    def __init__(self, args: Any, **options: Any) -> None:
        if not isinstance(args, list) or args[0] != sys.executable or "-m" not in args:
            super().__init__(args, **options)
            return
        self.args, self.returncode = args, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        self._sigint_wait_secs = 0.25
        self.pid = os.fork()
        if not self.pid:
            if options.get("start_new_session"):
                os.setsid()
            become(args, options.get("env") or os.environ, None)


def become(command: Sequence[str], environment: Mapping[str, str], cwd: str | None) -> NoReturn:
    """Be ``command`` in this process, which was just forked, and end with its exit code."""
    code = 1
    try:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        environment = dict(environment)
        os.environ.clear()
        os.environ.update(environment)
        if cwd is not None:
            os.chdir(cwd)
        tempfile.tempdir = None  # of the new environment
        _customize(environment.get("PYTHONPATH", ""))
        _show(command)
        if PLAIN_USER in environment:
            _drop_rights()
        if "-m" in command:
            at = command.index("-m")
            sys.argv = list(command[at + 1 :])
            runpy.run_module(command[at + 1], run_name="__main__", alter_sys=True)
        elif command[0] == sys.executable:
            sys.argv = list(command[1:])
            sys.path.insert(0, str(Path(command[1]).parent))
            runpy.run_path(command[1], run_name="__main__")
        else:
            sys.argv = list(command)
            from vse_scale.cli import main

            main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _customize(search: str) -> None:
    """Search ``search`` for modules first, as an interpreter that starts with it does."""
    sys.path[:0] = [folder for folder in search.split(os.pathsep) if folder not in ("", *sys.path)]
    custom = "sitecustomize"
    found = importlib.util.find_spec(custom) if custom not in sys.modules else None
    if found is not None:
        importlib.import_module(custom)


def _show(command: Sequence[str]) -> None:
    """Make ``command`` what the system shows as this process's command line."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    line = b"\0".join(map(os.fsencode, command))[: end - start - 1]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


def _drop_rights() -> None:
    """Give up root's right to read and write what it may not by the permissions."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capset(2), version 3
    data = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, data)
    for word in (0, 1):  # effective, permitted
        data[word] &= ~_RIGHTS
    ctypes.CDLL(None).capset(header, data)


def _start(asked: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    os.setsid()
    for path, descriptor in ((asked["out"], 1), (asked["err"], 2), (os.devnull, 0)):
        opened = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.closerange(3, 64)
    become(asked["command"], asked["environment"], asked["cwd"])


def _note_code(pid: int, where: Path) -> bool:
    """Write down the exit code of a child that has ended; return whether it has.

    It is not reaped: until it is buried nobody else can get its number, which is that of its group.
    """
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return False
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    partial = where.with_suffix(".partial")
    partial.write_text(str(code))
    partial.rename(where)
    return True


def main(path: str) -> None:
    for module in IMPORTED:
        __import__(module)
    subprocess.Popen = Forked
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)
        listening.settimeout(_POLL_SECONDS)
        parent = os.getppid()
        running: dict[int, Path] = {}  # the files of exit codes, by process
        while os.getppid() == parent:
            for pid in [pid for pid in running if _note_code(pid, running[pid])]:
                del running[pid]
            with suppress(TimeoutError):
                client, _ = listening.accept()
                with client, client.makefile("rw") as stream:
                    asked = json.loads(stream.readline())
                    if "bury" in asked:
                        os.waitpid(asked["bury"], 0)
                        stream.write("\n")
                    else:
                        pid = _start(asked)
                        running[pid] = Path(asked["code"])
                        stream.write(f"{pid}\n")


if __name__ == "__main__":
    main(sys.argv[1])
