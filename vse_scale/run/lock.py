"""The one owner of a run's folder: a lock file with a heartbeat, for network file systems too."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil

from vse_scale.console import log
from vse_scale.errors import OutputError, UserError
from vse_scale.files import unwritable, write_text
from vse_scale.run.folder import RunFolder
from vse_shards.json_text import read_json

LOCK = "VSE_SCALE_LOCK"  # environment variable: the token of the lock that a parent holds
BEAT_SECONDS = 5.0
# Without a beat, by the clock of the one who waits. NFS may show an old file for a minute.
STALE_SECONDS = 90.0
_SETTLE_SECONDS = 0.5  # of two that take over one lock, the later


class RunLock:
    """Makes this process the owner of a run's folder, within its ``with`` block.

    A child of the owner, which `LOCK` tells of the lock, holds it too and leaves it alone. The lock
    of a process that is gone is taken over: at once where it was on this machine, else once
    its heartbeat has been missing for `STALE_SECONDS`. No clocks are compared.

    Args:
        folder: the run's folder; made where there is none.

    Raises:
        OutputError: another process owns the folder, or it cannot be made or written.
        StorageError: the disk fails for a while.
    """

    def __init__(self, folder: Path) -> None:
        self.token = uuid.uuid4().hex
        self._folder = folder
        self._path = RunFolder(folder).lock_file
        self._own = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._beats = 0

    def __enter__(self) -> Self:
        inherited = os.environ.get(LOCK)
        if inherited and _read(self._path).get("token") == inherited:
            self.token = inherited
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise unwritable(f"run.dir is {self._folder}", error) from error
        self._own = True
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._own and _read(self._path).get("token") == self.token:
            with suppress(OSError):
                self._path.unlink()

    def check(self) -> None:
        """Raise OutputError where another process has taken the folder over, or it was removed.

        Raises:
            StorageError: the disk fails for a while.
        """
        found = _read(self._path)
        if found and found.get("token") != self.token:
            raise OutputError(
                f"{self._folder}: was taken over by {_owner(found)}, which goes on; this run ends"
            )
        try:
            self._path.stat()
        except FileNotFoundError:
            raise OutputError(
                f"{self._folder}: was removed or moved while the run wrote there; move it back and "
                "start the same command, which starts anew where there is no checkpoint"
            ) from None
        except OSError as error:
            raise unwritable(f"run.dir is {self._folder}", error) from error

    def _acquire(self) -> None:
        while not self._created():
            found = _read(self._path)
            if self._alive(found):
                raise OutputError(
                    f"run.dir is {self._folder}, which {_owner(found)} trains in; wait for it or "
                    "stop it, or give another run.dir"
                )
            if not self._path.exists():
                continue
            write_text(self._path, self._described(), shared=True)
            time.sleep(_SETTLE_SECONDS)
            if _read(self._path).get("token") == self.token:
                log.info("%s: took over from %s, which is gone", self._folder, _owner(found))
                return

    def _created(self) -> bool:
        try:
            with self._path.open("x", encoding="utf-8") as file:
                file.write(self._described())
        except FileExistsError:
            return False
        except OSError:
            with suppress(OSError):  # opened, and the disk was full
                self._path.unlink(missing_ok=True)
            raise
        return True

    def _alive(self, found: dict[str, Any]) -> bool:
        """Return whether the owner lives, after a wait where only its heartbeat can tell."""
        if found.get("machine") == _machine():
            with suppress(psutil.Error, TypeError, ValueError):
                owner = psutil.Process(int(found["pid"]))
                # In a container whose first process waits for none of its orphans, a killed owner
                # stays as a zombie, which writes no more.
                same = owner.create_time() == found.get("started")
                return same and owner.status() != psutil.STATUS_ZOMBIE
            return False
        log.info(
            "%s: waiting up to %.0f s for a sign of life of %s",
            self._folder, STALE_SECONDS, _owner(found),
        )  # fmt: skip
        waited_from = time.monotonic()
        while time.monotonic() < waited_from + STALE_SECONDS:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            now = _read(self._path)
            if not self._path.exists():
                return False
            if now and now != found:
                if found:
                    return True
                found = now  # it was just being written
        return False

    def _described(self) -> str:
        own = {
            "token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "user": _user(),
            "machine": _machine(), "started": psutil.Process().create_time(), "beat": self._beats,
        }  # fmt: skip
        return json.dumps(own) + "\n"

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._beats += 1
            with suppress(OSError):  # what is full or gone now may be well at the next beat
                if _read(self._path).get("token") == self.token:
                    write_text(self._path, self._described(), shared=True)


@contextmanager
def folder_first(lock: RunLock | None) -> Iterator[None]:
    """Let the loss of the run's folder go before what came of it, where the block fails."""
    try:
        yield
    except UserError:
        if lock is not None:
            lock.check()
        raise


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a lock; empty where it is not there, or half written."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _owner(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    host, user = (str(found.get(key))[:80] for key in ("host", "user"))
    return f"process {str(found.get('pid'))[:20]} of {user} on {host}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())


def _machine() -> str:
    """Name the boot and the process namespace: within one, a process id means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
