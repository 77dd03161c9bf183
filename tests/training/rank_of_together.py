"""One of the ranks that write one checkpoint file, each its part of a made state.

Usage: rank_of_together.py FOLDER CASE

Prints what the ranks' `Writer` did with the checkpoint of step 2, after it gathered that of step 1;
as JSON the exception, the digests of both files, and the warnings.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vse_scale.config import Config
from vse_scale.console import log
from vse_scale.training import snapshot
from vse_scale.training.checkpoint import TENSORS, Checkpoints
from vse_scale.training.run_state import RunState
from vse_scale.training.snapshot import Share
from vse_scale.training.together import write_pieces
from vse_scale.training.writer import Writer
from vse_scale.world.processes import World

START = 120.0  # seconds in which all ranks must have started
SHORT = 6.0  # that a rank is waited for where a disk takes longer


class State:
    """Tensors cut at places that are none of a disk's blocks, one of them not for all ranks."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks

    def shares(self) -> Iterator[tuple[str, Share]]:
        for name, shape, dtype in (
            ("model.a", (301, 7), torch.float32),
            ("model.b", (5,), torch.float32),
            ("exp_avg.a", (20_011, 13), torch.float32),
            ("model.c", (33, 3), torch.bfloat16),
        ):
            numbers = torch.arange(torch.Size(shape).numel()).to(dtype)
            bounds = [len(numbers) * rank // self._ranks for rank in range(self._ranks + 1)]
            if name == "model.b":
                bounds = [0, *[0] * (self._ranks - 1), len(numbers)]  # the last rank's alone
            start, stop = bounds[self._rank : self._rank + 2]
            yield name, Share(numbers[start:stop], torch.Size(shape), start)
        if self._rank == 0:
            yield "step", Share(torch.tensor(2.0), torch.Size())
            yield "model.n", Share(torch.tensor([7, 8]), torch.Size([2]))


def main(folder: Path, case: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=START))
    patience = SHORT if case == "slow" else START
    world = World.of_group(None, torch.device("cpu"))
    last = world.rank == world.ranks - 1

    def disturbed(target, held, check):
        if case == "full" and last:
            raise OSError(errno.ENOSPC, "No space left on device")
        if case == "unseen" and last:
            target = replace(target, path="/nowhere/state")
        if case == "another" and last:
            (folder / "other").write_bytes(b"")
            target = replace(target, path=str(folder / "other"))
        if case == "slow" and last and "step-00000002" in target.path:
            time.sleep(2 * SHORT)
        pieces = write_pieces(target, held, check)
        if case == "torn" and last:
            with open(target.path, "r+b") as file:
                file.seek(-1, 2)
                file.write(b"?")
        return pieces

    snapshot.write_pieces = disturbed
    config = Config.parse({"data": {"path": "shards"}, "run": {"dir": "out"}})
    state = RunState(step=1, fingerprint="f" * 64, config=config.model_dump(mode="json"))
    checkpoints, warned, fault = Checkpoints(folder, keep=9), [], ""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    log.addHandler(handler)
    made = State(world.rank, world.ranks)
    with Writer(checkpoints, world, patience, lambda written: None) as writer:
        writer.begin(made, state)
    writer = Writer(checkpoints, world, patience, lambda written: None, gather_gb=0)
    if case != "unseen" and case != "another":

        def whole():
            raise AssertionError("gathered")

        writer._snapshot.whole = whole
    for step in (2, 3):
        try:
            with writer:
                if case == "folder" and step == 2 and world.main:
                    folder.rename(folder.with_name("moved"))
                    folder.write_text("")
                writer.begin(made, replace(state, step=step))
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            break
    if case == "folder":
        folder = folder.with_name("moved")
    digests = {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob(f"*/{TENSORS}")
    }
    names = sorted(path.name for path in folder.iterdir())
    print(json.dumps({"fault": fault, "digests": digests, "warned": warned, "names": names}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
