"""Start a run through DeepSpeed's launcher, and restart it after a crash.

A process group does not survive the death of one of its ranks, so recovery is a new group on a new
port that goes on from the newest checkpoint. A dead rank ends the others within `GRACE_SECONDS`; a
silent one makes the others leave a collective after ``engine.timeout_seconds``, and dies with them.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.errors import TrainingError, UserError
from vse_scale.run.folder import RunFolder
from vse_scale.training.checkpoint import finished_checkpoints
from vse_scale.training.contract import EXIT_STOPPED, GRACE_SECONDS, RESTARTS
from vse_scale.world.join import cores_per_rank, free_port

_POLL_SECONDS = 0.2
_RANK = "vse_scale.training"  # the module that is a rank


class Supervisor:
    """Runs ``ranks`` processes on this machine until the run is complete."""

    def __init__(
        self, config: Config, command: list[str], *, ranks: int, max_restarts: int
    ) -> None:
        """Prepare to run ``command``, the arguments of ``python -m vse_scale.training``."""
        self._folder = RunFolder(Path(config.run.dir))
        self._command = command
        self._ranks = ranks
        self._max_restarts = max_restarts
        self._launcher: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._starts = 0

    def run(self) -> int:
        """Start, and start again after a failure; return the exit code.

        Raises:
            TrainingError: the run failed ``max_restarts`` times without a new checkpoint.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._forward)
        restarts = 0
        while True:
            before = self._newest_checkpoint()
            self._folder.done_file.unlink(missing_ok=True)
            code = self._launch()
            # A rank can abort while it is torn down, after its work.
            if code == 0 or self._folder.done_file.exists():
                return 0
            if self._stopping:
                return EXIT_STOPPED
            if code == UserError.exit_code:
                return code
            restarts = 0 if self._newest_checkpoint() != before else restarts + 1
            if restarts > self._max_restarts:
                raise TrainingError(
                    f"{self._folder.path}: the run died {restarts} times without a new checkpoint, "
                    f"last with exit code {code}; its own messages above say why"
                )
            log.warning("the run died with exit code %d; starting it again", code)

    def _launch(self) -> int:
        # The part of DeepSpeed's launcher that starts the ranks of one machine. `deepspeed` itself
        # would add a process that dies of a signal without passing it on.
        world = base64.urlsafe_b64encode(json.dumps({"localhost": [*range(self._ranks)]}).encode())
        arguments = [
            *(f"--world_info={world.decode()}", "--master_addr=127.0.0.1"),
            *(f"--master_port={free_port()}", "--no_local_rank", "--quiet"),
            *("--module", _RANK, *self._command),
        ]
        log.info("starting %d rank%s", self._ranks, "s"[: self._ranks - 1])
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(cores_per_rank(self._ranks)))
        environment[RESTARTS] = str(self._starts)
        self._starts += 1
        self._launcher = subprocess.Popen(
            [sys.executable, "-u", "-m", "deepspeed.launcher.launch", *arguments], env=environment
        )
        return self._wait(self._launcher)

    def _wait(self, launcher: subprocess.Popen[bytes]) -> int:
        """Return the launcher's exit code, once no rank is left."""
        ranks: set[psutil.Process] = set()
        ended_at: float | None = None
        while launcher.poll() is None:
            time.sleep(_POLL_SECONDS)
            alive = self._living_ranks()
            ranks |= alive
            if ended_at is None and ranks > alive:
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() > ended_at + GRACE_SECONDS:
                # A stopped process, or one that waits in a collective for a dead one, does not
                # heed SIGTERM.
                for rank in alive:
                    with suppress(psutil.NoSuchProcess):
                        rank.kill()
        for rank in ranks:
            # The launcher may have died before them.
            with suppress(psutil.NoSuchProcess):
                rank.kill()
        psutil.wait_procs(list(ranks), timeout=GRACE_SECONDS)
        return launcher.returncode

    def _living_ranks(self) -> set[psutil.Process]:
        if self._launcher is None:
            return set()
        with suppress(psutil.NoSuchProcess):
            # The launcher may ask other programs for their versions; these end without harm. What
            # has ended, and is not yet waited for, has no command line.
            children = psutil.Process(self._launcher.pid).children()
            return {rank for rank in children if _RANK in rank.cmdline()[:4]}
        return set()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Ask the ranks themselves to stop: the launcher would kill them after 30 seconds."""
        self._stopping = True
        for rank in self._living_ranks():
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGTERM)

    def _newest_checkpoint(self) -> Path | None:
        return next(iter(finished_checkpoints(self._folder.checkpoints_folder)), None)
