"""One of the ranks that write a checkpoint which takes longer than a rank is waited for.

Usage: rank_of_writing.py FOLDER WAIT SECONDS ERROR

WAIT: seconds that a rank is waited for. SECONDS: that the disk takes. ERROR: its number, or 0.
Prints the exception that ended the block, or the step that was written, and each half's value.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from vse_scale.config import Config
from vse_scale.training import checkpoint
from vse_scale.training.checkpoint import TENSORS, Checkpoints
from vse_scale.training.run_state import RunState
from vse_scale.training.snapshot import Share
from vse_scale.training.state import write_tensors
from vse_scale.training.writer import Writer
from vse_scale.world.join import bound_waits, join_world

HALF = 1000


class Halves:
    """A state of which each rank holds a half, filled with its number."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def shares(self) -> Iterator[tuple[str, Share]]:
        values = torch.full((HALF,), float(self._rank + 1))
        yield "halves", Share(values, torch.Size([2 * HALF]), self._rank * HALF)


def main(folder: Path, wait: float, seconds: float, error: int) -> None:
    world = join_world(120)  # a busy machine starts one rank long after the other
    world.barrier()
    bound_waits(wait)

    def slow(*given) -> str:
        time.sleep(seconds)
        if error:
            raise OSError(error, "the disk's own words")
        return write_tensors(*given)

    checkpoint.write_tensors = slow
    config = Config.parse({"data": {"path": "shards"}, "run": {"dir": "out"}})
    state = RunState(step=7, fingerprint="f" * 64, config=config.model_dump(mode="json"))
    checkpoints = Checkpoints(folder, keep=2)
    try:
        with Writer(checkpoints, world, wait, lambda written: None) as writer:
            writer.begin(Halves(world.rank), state)
            while not world.main and writer._thread is not None:
                writer.look()  # so that this rank alone is done with it before the end
        world.barrier()
        newest = checkpoints.newest()
        assert newest is not None
        values = load_file(newest[0] / TENSORS)["halves"]
        print(newest[1].step, values.view(2, HALF).mean(1).tolist())
    except Exception as failure:
        print(type(failure).__name__, failure)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
