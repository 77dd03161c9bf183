"""All-gathers that count their bytes and seconds."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in torch 2.13, which warns of the former name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """Gathers tensors over the ranks of a group; without torch.distributed there is one rank.

    Args:
        group: the ranks; None means all.
        device: of the tensors.

    Attributes:
        rank: of this process in the group.
        ranks: how many.
        bytes_sent: bytes that left this rank for the others, so far.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if distributed else 0
        self.ranks = dist.get_world_size(group) if distributed else 1
        self.bytes_sent = 0
        self._group = group
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def gather(self, values: Tensor) -> Tensor:
        """Return the ``values`` (n, ...) of all ranks below one another, (ranks * n, ...).

        Their shape must be the same on every rank. No gradient flows back.
        """
        if self.ranks == 1:
            return values
        values = values.contiguous()
        gathered = values.new_empty(self.ranks * len(values), *values.shape[1:])
        began = time.perf_counter()
        before = self._event()
        _all_gather(gathered, values, group=self._group)
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
        """Mark this place in the GPU's queue; None on a CPU, where a collective blocks."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
