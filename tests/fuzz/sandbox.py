"""Commands run in this process, watched: their exit code, lines, time, memory and writes."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from memory import forget_peak, peak_memory

SECONDS = 20
MEMORY = 1 << 30  # bytes that a command may add
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NAMES = {
    "os.remove": 0, "os.rename": 1, "os.mkdir": 0, "os.rmdir": 0, "os.symlink": 1, "os.link": 1,
    "os.truncate": 0, "os.chmod": 0, "shutil.rmtree": 0,
}  # fmt: skip


class Watch:
    """An audit hook, which stays for the life of the process and sees only while it is on."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.on = False
        self.outside: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        name: object = None
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            name = arguments[0]
        elif event in _NAMES and arguments[-1] in (-1, None):  # else within an open folder
            name = arguments[_NAMES[event]]
        elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
            self.outside.append(f"{event} {arguments!r:.200}")
        if isinstance(name, str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(name))
            if not path.startswith(self.allowed) and path != "/dev/null":
                self.outside.append(f"{event} {path}")


WATCH = Watch()


@dataclass
class Fault(Exception):
    """What a command did that it must not."""

    what: str
    detail: str


class TooSlow(BaseException):
    """A command beyond its time; no handler of errors catches it."""


@contextmanager
def limited(folder: Path) -> Iterator[None]:
    """Within the block: an alarm, and a watch on writes outside ``folder``."""

    def ring(number: int, frame: object) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    WATCH.allowed = (str(folder.resolve()), "/dev/shm/", "/proc/self/")
    WATCH.outside.clear()
    WATCH.on = True
    signal.setitimer(signal.ITIMER_REAL, SECONDS * 5)  # of the wall; shared machines stall
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        WATCH.on = False
        signal.signal(signal.SIGALRM, before)


def run(main: Callable[[], None], arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a command line in this process; return its exit code, and what it said.

    Raises:
        Fault: it ended in anything but exit 0, or 2 or 75 with one line, took too much, or wrote
            outside ``folder``.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "strict") for _ in range(2))
    argv, sys.argv = sys.argv, arguments
    started, held = os.times(), forget_peak()
    code = 0
    try:
        with limited(folder), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except (Exception, TooSlow) as error:
        where = [
            f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename
        ]
        place = next((f for f in reversed(where) if "vse_" in f.filename), where[-1])
        raise Fault(
            f"{type(error).__name__} at {Path(place.filename).name}:{place.name}",
            "".join(traceback.format_exception(error)[-7:])[-2000:],
        ) from None
    finally:
        sys.argv = argv
    for stream in (out, err):
        stream.flush()
    said = b"".join(stream.buffer.getvalue() for stream in (out, err)).decode()  # type: ignore[attr-defined]
    used = sum(os.times()[:2]) - sum(started[:2])
    added = peak_memory() - held
    _judge(code, said, used, added)
    return code, said


def judge(code: int, said: str) -> list[str]:
    """Return what is wrong with an exit code and the lines that were said."""
    errors = [line for line in said.splitlines() if ": error: " in line]
    faults = {
        f"exit {code}": code not in (0, 2, 75),
        f"{len(errors)} lines of error": code in (2, 75) and len(errors) != 1,
        "a traceback": "Traceback" in said,
        "a control character": any(ord(c) < 32 and c != "\n" for c in said),
        "a long line": any(len(line) > 5000 for line in errors),
    }
    return [what for what, holds in faults.items() if holds]


def _judge(code: int, said: str, used: float, added: int) -> None:
    faults = {
        **dict.fromkeys(judge(code, said), True),
        f"{used:.0f} s": used > SECONDS,
        f"{added >> 20} MB": added > MEMORY,
        "a write outside": bool(WATCH.outside),
    }
    for what, holds in faults.items():
        if holds:
            raise Fault(
                what.lstrip("0123456789 ") or what, f"{what}\n{said[-2000:]}\n{WATCH.outside}"
            )
