"""A run that only records, and is killed: ``python tracked_run.py FOLDER NAME``.

It has a checkpoint and a validation after every tenth step. Each of its starts is a process, which
goes on at a step and after another is killed once the store has all, killed at once, stopped before
its last step, or ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from records import EVALUATION, RECORD

from vse_scale.config import Config
from vse_scale.run.folder import RunFolder
from vse_scale.training.resumed import open_journals
from vse_scale.training.watch import tracker
from vse_scale.training.watch.observers import Observers
from vse_scale.world.processes import World

EVERY = 10
STEPS = 150
STARTS = [(0, 126, "kill"), (120, 133, "cut"), (130, 139, "stop"), (140, STEPS - 1, "end")]


def loss_of(step: int) -> float:
    return 1 + step / 128  # exact in float32


def follow(root: Path, name: str, first: int, last: int, how: str) -> None:
    config = Config.load(root / "small.yaml", [f"telemetry.observers=[{name}]"])
    folder = RunFolder(Path(config.run.dir))
    folder.path.mkdir(exist_ok=True)
    steps, evaluations = open_journals(folder, first)
    observers = Observers(config, World(0, 1), next_step=first, total_steps=STEPS)
    for step in range(first, last + 1):
        record = replace(RECORD, step=step, loss=loss_of(step))
        observers.step(record)
        steps.write(record)
        if (step + 1) % EVERY == 0:
            found = replace(EVALUATION, step=step, rsum=float(step))
            evaluations.write(found)
            evaluations.flush()
            observers.evaluation(found)
            steps.flush()
            observers.checkpoint(root, 0.1)
    while how == "kill" and not observers._following[name]._rows.empty():
        time.sleep(0.1)
    if how in ("kill", "cut"):
        os.kill(os.getpid(), signal.SIGKILL)
    steps.close()
    if how == "end":
        observers.finished()
    observers.close()


def start(root: Path, name: str, first: int, last: int, how: str) -> None:
    """Run one start in a process of its own, which shares what is imported."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            follow(root, name, first, last, how)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-9 if how in ("kill", "cut") else 0), how


if __name__ == "__main__":
    tracker._CLOSING_SECONDS = 600.0  # on a machine that is busy
    for one in STARTS:
        start(Path(sys.argv[1]), sys.argv[2], *one)
