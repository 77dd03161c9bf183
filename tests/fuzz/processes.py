"""Command lines as processes of their own, each a fork of this one, under limits of the system.

Usage: processes.py

Reads a line of JSON for each process, and answers with one: its exit code, its seconds of CPU. A
process is limited to 20 s of CPU and five times that of the wall, to 1 GB beyond what the libraries
hold, and to files of 64 MB.
Started by root it is the user ``nobody``, who may read everything, and write what is his.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from corpus import TARGETS
from sandbox import MEMORY, SECONDS

NOBODY = 65534
IMPORTED = (  # once, for all processes
    "transformers.models.bert.modeling_bert", "vse_scale.interchange.published",
    "vse_scale.report.from_run", "vse_scale.retrieval.embed", "vse_scale.retrieval.encoder",
    "vse_scale.retrieval.index", "vse_scale.retrieval.sources", "vse_scale.world.join",
)  # fmt: skip
MOST_FILE = 64 << 20  # bytes
_READ_ALL = 1 << 2  # CAP_DAC_READ_SEARCH: the libraries may lie in root's home
_KEEP_CAPS = 8  # PR_SET_KEEPCAPS


def become_nobody() -> None:
    """Give up root for a user who may read what he likes."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_KEEP_CAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capset(2), version 3
    data = (ctypes.c_uint32 * 6)(_READ_ALL, _READ_ALL)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def limit() -> None:
    """Set the limits of this process."""
    status = Path("/proc/self/status").read_text().split("VmData:")[1]
    most = int(status.split()[0]) * 1024 + MEMORY
    for what, value in (
        (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_DATA, most),
        (resource.RLIMIT_FSIZE, MOST_FILE), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (value, value))
    signal.alarm(5 * SECONDS)  # of the wall: what waits takes no CPU


def be(job: dict[str, Any]) -> NoReturn:
    """Be a command in this process, which was just forked, and end with its exit code."""
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(os.open(job["said"], os.O_CREAT | os.O_APPEND | os.O_WRONLY), descriptor)
        os.chdir(job["box"])
        os.environ["TMPDIR"] = os.environ["HOME"] = job["box"]
        if os.getuid() == 0:
            become_nobody()
        limit()
        sys.argv = ["x", *job["arguments"]]
        TARGETS[job["target"]].main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer the lines of stdin."""
    for module in IMPORTED:
        __import__(module)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file beyond its limit is an error
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            be(json.loads(line))
        _, status, used = os.wait4(pid, 0)
        seconds = used.ru_utime + used.ru_stime
        print(json.dumps([os.waitstatus_to_exitcode(status), seconds]), flush=True)


if __name__ == "__main__":
    serve()
