"""Start a run through DeepSpeed's launcher, and restart it after a crash.

A process group does not survive the death of one of its ranks, so recovery is a new group on a new
port that goes on from the newest checkpoint. A dead rank ends the others within `GRACE_SECONDS`; a
silent one makes the others leave a collective after ``engine.timeout_seconds``, and dies with them.
Where all are silent for longer, as one that is alone, all are killed.
"""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from vse_scale.config import Config
from vse_scale.console import HEARTBEAT_SECONDS, log
from vse_scale.errors import StorageError, TrainingError, UserError
from vse_scale.files import unwritable
from vse_scale.run.folder import RunFolder
from vse_scale.run.lock import LOCK, RunLock
from vse_scale.training.alive import Silence
from vse_scale.training.checkpoint import finished_checkpoints
from vse_scale.training.contract import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    FAILURES,
    GRACE_SECONDS,
    RESTARTS,
    SUPERVISOR,
)
from vse_scale.training.failures import (
    Failure,
    OutOfMemory,
    killed_for_memory,
    less_memory,
    notes,
    refusal,
)
from vse_scale.training.stopping import stop_signals
from vse_scale.world.devices import visible_devices
from vse_scale.world.join import cores_per_rank, free_port

_POLL_SECONDS = 0.2
_LONGEST_PAUSE = 60.0  # seconds between two starts
_START_SECONDS = 300.0  # until a rank's first sign: Python's files may lie on a slow disk
_RANK = "vse_scale.training"  # the module that is a rank
_LAUNCHER = "vse_scale.training.launcher"
_KILLED = (-signal.SIGKILL % 256, -signal.SIGKILL)  # exit codes of the launcher, whose rank was


class Supervisor:
    """Runs ``ranks`` processes on this machine until the run is complete."""

    def __init__(
        self, config: Config, command: list[str], *, ranks: int, max_restarts: int
    ) -> None:
        """Prepare to run ``command``, the arguments of ``python -m vse_scale.training``."""
        self._config = config
        self._folder = RunFolder(Path(config.run.dir))
        # Ranks that wait for one another find out by themselves.
        self._patience = config.engine.timeout_seconds + (GRACE_SECONDS if ranks > 1 else 0.0)
        self._patience = max(self._patience, 2 * HEARTBEAT_SECONDS)  # by which long work tells
        self._command = command
        self._ranks = ranks
        self._max_restarts = max_restarts
        self._launcher: subprocess.Popen[bytes] | None = None
        self._stopping = self._interrupted = False
        self._starts = 0
        self._environment: dict[str, str] = {}

    def run(self) -> int:
        """Start, and start again after a failure; return the exit code.

        Raises:
            OutputError: the run's folder cannot be written, or another process trains in it.
            TrainingError: the run failed ``max_restarts`` times without a new checkpoint, and not
                for a storage that may come back, or in a way that would come again.
        """
        for number in stop_signals():
            signal.signal(number, self._hear)
        with (
            RunLock(self._folder.path) as lock,
            tempfile.TemporaryDirectory(prefix="vse-scale-", ignore_cleanup_errors=True) as left,
        ):
            self._environment = {LOCK: lock.token, FAILURES: left}
            return self._run(Path(left), lock)

    def _run(self, left: Path, lock: RunLock) -> int:
        restarts = 0
        failures: set[Failure] = set()
        while not self._stopping:
            killed = killed_for_memory()
            code, got_on = self._start(lock)
            if code == 0:
                return 0
            refused = refusal(left)
            if isinstance(refused, OutOfMemory):
                raise refused
            # The launcher's code is that of the rank that left first.
            if refused or code == UserError.exit_code:
                return UserError.exit_code
            if self._stopping:  # asked to, and checkpointed
                break
            former, failures = failures, notes(left)
            self._check_worth(code, killed, former & failures)
            restarts = 0 if got_on else restarts + 1
            if restarts > self._max_restarts:
                return self._give_up(code, restarts)
            self._pause(code, min(_LONGEST_PAUSE, 2.0 ** (restarts - 1)) if restarts else 0.0)
        return EXIT_INTERRUPTED if self._interrupted else EXIT_STOPPED

    def _start(self, lock: RunLock) -> tuple[int, bool]:
        """Start the ranks, and wait; return their code, and whether there is a new checkpoint.

        A disk that fails for a while here is as bad as one that fails there.
        """
        code, done = StorageError.exit_code, self._folder.done_file
        try:
            lock.check()
            before = self._newest_checkpoint()
            try:
                done.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(str(done), error) from error
            code = self._launch()
            # A rank can abort while it is torn down, after its work.
            if code == 0 or os.path.exists(done):
                return 0, True
            if refusal(Path(self._environment[FAILURES])):
                return code, False  # said, and the checkpoints may be as far out of reach
            return code, self._newest_checkpoint() != before
        except StorageError as error:
            log.error("%s", error)
            return code, False

    def _give_up(self, code: int, restarts: int) -> int:
        """Return the code of a storage that stays away; raise TrainingError for all else."""
        if code == StorageError.exit_code:
            return code  # it may pass, as the ranks have said
        raise TrainingError(
            f"{self._folder.path}: the run died {restarts} times without a new checkpoint, "
            f"last with exit code {code}; its own messages above say why"
        )

    def _check_worth(self, code: int, killed: int, again: set[Failure]) -> None:
        """Raise TrainingError where another start would end as this one did."""
        if code in _KILLED and killed_for_memory() > killed:
            raise OutOfMemory(
                f"{self._folder.path}: the system killed a rank for lack of memory",
                f"give the run more, or set {less_memory(self._config, self._ranks)}",
            )
        if again:
            found = min(again, key=lambda failure: (failure.step, failure.words))
            raise TrainingError(
                f"{self._folder.path}: step {found.step} failed twice in the same way "
                f"({found.words}); another start would not help, its messages above say where"
            )

    def _pause(self, code: int, seconds: float) -> None:
        soon = f" in {seconds:.0f} s" if seconds else ""
        log.warning("the run died with exit code %d; starting it again%s", code, soon)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self._stopping:
            time.sleep(_POLL_SECONDS)

    def _launch(self) -> int:
        # The part of DeepSpeed's launcher that starts the ranks of one machine. `deepspeed` itself
        # would add a process that dies of a signal without passing it on. It makes the list of GPUs
        # the ranks' CUDA_VISIBLE_DEVICES.
        world = json.dumps({"localhost": visible_devices(os.environ, self._ranks)}).encode()
        arguments = [
            *(f"--world_info={base64.urlsafe_b64encode(world).decode()}",),
            *("--master_addr=127.0.0.1", f"--master_port={free_port()}"),
            *("--no_local_rank", "--log_level=critical", "--module", _RANK, *self._command),
        ]
        log.info("starting %d rank%s", self._ranks, "s"[: self._ranks - 1])
        environment = {
            **os.environ, **self._environment, RESTARTS: str(self._starts),
            SUPERVISOR: str(os.getpid()),
            # Else a file of the current folder is imported in place of a package of its name.
            "PYTHONSAFEPATH": "1",
        }  # fmt: skip
        environment.setdefault("OMP_NUM_THREADS", str(cores_per_rank(self._ranks)))
        self._starts += 1
        self._launcher = subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", _LAUNCHER, *arguments],
            env=environment,
            # A terminal's Ctrl-C is for the supervisor: the launcher would kill the ranks.
            start_new_session=True,
        )
        return self._wait(self._launcher)

    def _wait(self, launcher: subprocess.Popen[bytes]) -> int:
        """Return the launcher's exit code, once no rank is left."""
        ranks: set[psutil.Process] = set()
        asked: set[psutil.Process] = set()
        ended_at = math.inf
        silence = Silence(Path(self._environment.get(FAILURES, os.devnull)))
        while launcher.poll() is None:
            time.sleep(_POLL_SECONDS)
            alive = self._living_ranks()
            ranks |= alive
            if self._stopping:
                self._ask(alive - asked, first=not asked)
                asked |= alive
            if ranks > alive:
                ended_at = min(ended_at, time.monotonic())
            if ended_at == math.inf and self._is_silent(silence):
                ended_at = time.monotonic() - GRACE_SECONDS
            late = time.monotonic() - ended_at
            # A stopped process, or one that waits in a collective for a dead one, does not heed
            # SIGTERM.
            if self._interrupted or late > GRACE_SECONDS:
                _send(alive, signal.SIGKILL)
            # A launcher that is stopped does not see that its ranks have ended.
            if self._interrupted or (late > 2 * GRACE_SECONDS and not alive):
                launcher.kill()
        # The launcher may have died before them.
        _send(ranks, signal.SIGKILL)
        psutil.wait_procs(list(ranks), timeout=GRACE_SECONDS)
        return launcher.returncode

    def _is_silent(self, silence: Silence) -> bool:
        """Return whether the ranks have been silent for too long, and say so."""
        seconds, patience = silence.seconds(), self._patience
        if silence.is_first:
            patience = max(patience, _START_SECONDS)
            said = (
                "no rank began its work within %.0f s of its start; all are killed; if Python's "
                "packages only load slowly, set engine.timeout_seconds above that"
            )
        else:
            said = (
                "no rank got on with its work for %.0f s (engine.timeout_seconds); they are "
                "killed; raise engine.timeout_seconds if the storage is only slow"
            )
        if silent := seconds > patience:
            log.error(said, seconds)
        return silent

    def _ask(self, ranks: set[psutil.Process], *, first: bool) -> None:
        """Ask ranks to stop; not the launcher, which would kill them after 30 seconds."""
        if first and ranks:
            log.info("asked to stop: the ranks checkpoint and leave; Ctrl-C now kills them")
        _send(ranks, signal.SIGTERM)

    def _living_ranks(self) -> set[psutil.Process]:
        if self._launcher is None:
            return set()
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._launcher.pid).children()
        found = set()
        for child in children:
            # The launcher may ask other programs for their versions; these end without harm. What
            # has ended, and is not yet waited for, has no command line.
            with suppress(psutil.NoSuchProcess):
                if _RANK in child.cmdline()[:4]:
                    found.add(child)
        return found

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Remember that the run is to stop, or to end at once: `_wait` sees to it."""
        self._interrupted |= self._stopping and number == signal.SIGINT
        self._stopping = True

    def _newest_checkpoint(self) -> Path | None:
        return next(iter(finished_checkpoints(self._folder.checkpoints_folder)), None)


def _send(processes: set[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
