"""A run's state at one step: each rank copies what it holds, and the main rank gathers the copies.

Or, where it is large and all see one disk, each writes its own copies into one file. Only the
copying keeps the steps waiting. The rest takes a process group of its own, so that a thread can do
it while the ranks train.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from vse_scale.console import log
from vse_scale.training.state import laid_out, write_tensors
from vse_scale.training.together import Piece, Target, sha256_of_pieces, write_pieces
from vse_scale.world.processes import World

_LOOK_SECONDS = 10.0  # between two looks of all ranks at whether all have written


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
        self._patience = min(_LOOK_SECONDS, timeout_seconds / 3)
        self._shared_disk = True  # until a rank does not see a file of the main one
        self._told = False
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

    def exceeds(self, limit: float) -> bool:
        """Return whether `write` is for this state: more than ``limit`` bytes, on a shared disk.

        Every rank calls this and hears the main one's answer.
        """
        if self._group is None or not self._shared_disk:
            return False
        size = sum(
            self._copies[name].dtype.itemsize * shape.numel()
            for name, (shape, _) in self._places.items()
        )
        self._told = False
        return bool(self._from_main(size > limit))

    def write(self, path: Path, check: Callable[[], None]) -> str:
        """Have all ranks write one file of the state, and return its sha256.

        The main rank calls this, and then, or in its place, `release`; all others `help_write`.
        Where one does not see ``path``, the main rank gathers the whole and writes it alone, now
        and from then on.

        Raises:
            OSError: it cannot be written, on any rank.
        """
        kinds = {
            name: (self._copies[name].dtype, shape) for name, (shape, _) in self._places.items()
        }
        head, starts, length = laid_out(kinds)
        target = Target.made(path, head, starts, length)
        self._told = True
        self._from_main(target)
        if (pieces := self._write_own(target, check)) is not None:
            return sha256_of_pieces(path, len(head), pieces, check)
        log.warning(
            "run.dir is on a disk that not all ranks see, so the first gathers each checkpoint and "
            "holds the whole; put run.dir on a disk that all see, or raise run.gather_gb"
        )
        path.unlink()
        return write_tensors(path, self.whole(), check)

    def release(self) -> None:
        """Let the others go where `write` was not reached."""
        if not self._told:
            self._from_main(None)

    def help_write(self, check: Callable[[], None]) -> None:
        """Write this rank's part of what the main one writes."""
        target = self._from_main(None)
        if target is not None and self._write_own(target, check) is None:
            self.whole()

    def _write_own(self, target: Target, check: Callable[[], None]) -> list[Piece] | None:
        """Write this rank's copies; return the pieces of all, None if some do not see the file."""
        held = [
            (target.starts[name] + self._copies[name].dtype.itemsize * start, self._copies[name])
            for name, (_, start) in self._places.items()
            if len(self._copies[name])
        ]
        own: list[Any] = [None]

        def write() -> None:
            try:
                own[0] = write_pieces(target, held, check)
            except BaseException as error:  # of a thread: the main rank raises it
                own[0] = error

        # A daemon, as the caller: a disk that hangs must not keep a process that is to end.
        writing = threading.Thread(target=write, name="checkpoint-part", daemon=True)
        writing.start()
        # All ask again and again: a disk may take longer than a rank is waited for.
        alive = True
        while alive:
            writing.join(self._patience)
            alive = any(self._all(writing.is_alive()))
        found = self._all(own[0])
        if faults := [one for one in found if isinstance(one, BaseException)]:
            if self._world.main:  # which tells the others
                raise faults[0]
            return []
        self._shared_disk = None not in found
        return [piece for pieces in found for piece in pieces] if self._shared_disk else None

    def _from_main(self, value: Any) -> Any:
        return replace(self._world, group=self._group).from_main(value)

    def _all(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self._world.ranks
        dist.all_gather_object(found, value, group=self._group)
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
