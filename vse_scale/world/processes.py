"""A process among those that work together: its rank, its share, and its messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")

# Renamed in torch 2.13, which warns of the former name.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class World:
    """One process among ``ranks``; a world of one communicates with nobody.

    Every rank of the group calls a method that communicates, in the same order.

    Attributes:
        rank: of this process, from 0.
        ranks: the number of processes.
        device: of this process's model and tensors.
        group: the processes; None means all that joined.
        local_rank: of this process among those of its machine.
    """

    rank: int = 0
    ranks: int = 1
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None
    local_rank: int = 0

    @classmethod
    def of_group(cls, group: dist.ProcessGroup | None, device: torch.device) -> World:
        """Return this process's place in ``group``; alone where no process group was joined."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(device=device)
        return cls(dist.get_rank(group), dist.get_world_size(group), device, group)

    @property
    def main(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Rank and number of ranks, as kernels take them."""
        return self.rank, self.ranks

    def rows(self, total: int) -> tuple[int, int]:
        """Return this process's contiguous part [start, stop) of ``total`` rows."""
        return total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks

    def across(self, values: Tensor, operation: Literal["max", "sum"]) -> None:
        """Reduce ``values`` over all processes, in place."""
        if self.ranks == 1:
            return
        moved = self._movable(values)
        kind = dist.ReduceOp.MAX if operation == "max" else dist.ReduceOp.SUM
        dist.all_reduce(moved, kind, group=self.group)
        if moved is not values:
            values.copy_(moved)

    def gather(self, values: Tensor) -> Tensor:
        """Return the ``values`` (n, ...) of all ranks in order, (ranks * n, ...), on their device.

        Their shape and dtype must be the same on every rank. No gradient flows back.
        """
        if self.ranks == 1:
            return values
        moved = self._movable(values.contiguous())
        gathered = moved.new_empty(self.ranks * len(moved), *moved.shape[1:])
        all_gather(gathered, moved, group=self.group)
        return gathered.to(values.device)

    def broadcast(self, values: Tensor, source: int = 0) -> None:
        """Fill ``values`` with those of rank ``source``, in place."""
        if self.ranks == 1:
            return
        moved = self._movable(values)
        dist.broadcast(moved, group=self.group, group_src=source)
        if moved is not values:
            values.copy_(moved)

    def from_main(self, value: Any) -> Any:
        """Return the main rank's ``value``, which can be pickled; the others' is not looked at."""
        if self.ranks == 1:
            return value
        held = [value if self.main else None]
        dist.broadcast_object_list(held, group=self.group, group_src=0)
        return held[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.ranks > 1:
            dist.barrier(self.group)

    def _movable(self, values: Tensor) -> Tensor:
        """Return ``values`` on a device that the group's backend reads: NCCL, the GPU alone."""
        nccl = dist.get_backend(self.group) == "nccl"
        return values.cuda() if nccl and not values.is_cuda else values


Processes: TypeAlias = World
ALONE = World()
