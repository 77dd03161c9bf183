"""Work shared out over the processes that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(hours=2)  # one process may still encode when the others are done


@dataclass(frozen=True)
class Processes:
    """This process among those that evaluate together."""

    rank: int = 0
    ranks: int = 1

    @property
    def main(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Rank and number, as kernels take them."""
        return self.rank, self.ranks

    def rows(self, total: int) -> tuple[int, int]:
        """Return this process's contiguous part [start, stop) of ``total`` rows."""
        return total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks

    def across(self, values: Tensor, operation: Literal["max", "sum"]) -> None:
        """Reduce ``values`` over all processes, in place."""
        if self.ranks == 1:
            return
        # NCCL moves tensors of the GPU only.
        nccl = dist.get_backend() == "nccl"
        moved = values.cuda() if nccl and not values.is_cuda else values
        dist.all_reduce(moved, dist.ReduceOp.MAX if operation == "max" else dist.ReduceOp.SUM)
        if moved is not values:
            values.copy_(moved)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the process group that a launcher describes in the environment, for the block.

    Without a launcher this process is alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
