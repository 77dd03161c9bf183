"""All-gathers that count their bytes and seconds."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

from vse_scale.world.processes import World


class Exchange:
    """Gathers tensors over the ranks of a group and counts the cost.

    Args:
        group: the ranks; None means all.
        device: of the tensors.

    Attributes:
        world: this process's place in the group.
        bytes_sent: bytes that left this rank for the others, so far.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.world = World.of_group(group, device)
        self.bytes_sent = 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def rank(self) -> int:
        """Rank of this process in the group."""
        return self.world.rank

    @property
    def ranks(self) -> int:
        """Number of ranks in the group."""
        return self.world.ranks

    def gather(self, values: Tensor) -> Tensor:
        """Return the ``values`` of all ranks, as `World.gather` does."""
        if self.ranks == 1:
            return values
        began = time.perf_counter()
        before = self._event()
        gathered = self.world.gather(values)
        after = self._event()
        if before is not None and after is not None:
            self._events.append((before, after))
        else:
            self._seconds += time.perf_counter() - began
        self.bytes_sent += values.nbytes * (self.ranks - 1)
        return gathered

    def seconds(self) -> float:
        """Return the seconds spent so far; on a GPU this waits for the last collective."""
        for before, after in self._events:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1000.0
        self._events.clear()
        return self._seconds

    def _event(self) -> torch.cuda.Event | None:
        """Mark this point of the GPU's stream; None on a CPU, where a collective blocks."""
        if self.world.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
