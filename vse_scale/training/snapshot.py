"""A run's state at one step: each rank copies what it holds, and the main rank gathers the copies.

Only the copying keeps the steps waiting. Gathering takes a process group of its own, so that a
thread can do it while the ranks train.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from vse_scale.world.processes import World


@dataclass(frozen=True)
class Share:
    """The values that this rank holds of one tensor of the state.

    Attributes:
        values: on any device and of any shape; their order is that of the whole tensor.
        shape: of the whole tensor.
        start: place of the first of the values in the whole tensor, flat.
    """

    values: Tensor
    shape: torch.Size
    start: int = 0


Shares: TypeAlias = Iterable[tuple[str, Share]]
_Layout: TypeAlias = list[tuple[str, int, int]]  # name, start and number of values of each share


class Snapshot:
    """Host copies of a rank's shares, each taken again and again into the same memory.

    Args:
        world: the ranks, all of which make one at the same time.
        timeout_seconds: longest wait for another rank.
    """

    def __init__(self, world: World, timeout_seconds: float) -> None:
        self._world = world
        self._group: dist.ProcessGroup | None = None
        if world.ranks > 1:
            wait = timedelta(seconds=timeout_seconds)
            self._group = dist.new_group(backend="gloo", timeout=wait)
        self._copies: dict[str, Tensor] = {}
        self._places: dict[str, tuple[torch.Size, int]] = {}

    @torch.no_grad()
    def take(self, shares: Shares) -> None:
        """Copy this rank's ``shares``; `whole` must be done with those that were taken before."""
        for name, share in shares:
            held = self._copies.get(name)
            if held is None or held.numel() != share.values.numel():
                # Pageable memory: what is pinned is gone for all others, and may be too much.
                held = torch.empty(share.values.numel(), dtype=share.values.dtype)
                self._copies[name] = held
            held.view(share.values.shape).copy_(share.values)
            self._places[name] = (share.shape, share.start)

    def whole(self) -> dict[str, Tensor]:
        """Return the whole tensors by name on the main rank, none on the others; every rank calls.

        They share memory with the copies, which `take` overwrites.
        """
        if not self._world.main:
            self._send()
            return {}
        found = {}
        for name, (shape, start) in self._places.items():
            own = self._copies[name]
            if own.numel() < shape.numel():
                found[name] = own.new_empty(shape)
                _part(found[name], start, own.numel()).copy_(own)
            else:
                found[name] = own.view(shape)
        lacking = {name: value.numel() - len(self._copies[name]) for name, value in found.items()}
        for rank, layout in enumerate(self._layouts()):
            for name, start, length in layout if rank else ():
                dist.recv(_part(found[name], start, length), src=rank, group=self._group)
                lacking[name] -= length
        if wrong := [name for name, values in lacking.items() if values]:
            raise RuntimeError(f"the ranks do not hold {wrong[0]} once between them")
        return found

    def _send(self) -> None:
        layout = [
            (name, start, len(self._copies[name])) for name, (_, start) in self._places.items()
        ]
        layout = [place for place in layout if place[2]]
        dist.gather_object(layout, None, dst=0, group=self._group)
        for name, _, _ in layout:
            dist.send(self._copies[name], dst=0, group=self._group)

    def _layouts(self) -> list[_Layout]:
        layouts: list[_Layout] = [[] for _ in range(self._world.ranks)]
        if self._group is not None:
            dist.gather_object([], layouts, dst=0, group=self._group)
        return layouts


def _part(whole: Tensor, start: int, length: int) -> Tensor:
    return whole.view(-1)[start : start + length]
