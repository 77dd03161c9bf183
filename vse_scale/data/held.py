"""The order of an epoch as an array, which small splits keep and runs begun before finish with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vse_scale.data.shares import Indices, Share, epoch_generator
from vse_scale.data.windows import Windows


class HeldOrder:
    """The units of every batch, from the whole order of the most recent epoch.

    Args:
        bounds: (shards + 1,) the first unit of each shard, and the number of all units.
        window: shards that are shuffled together; 0 for all.
        seed: of the run.
        per_step: units of a batch.
        shares: shares of mixed datasets.
    """

    def __init__(
        self, bounds: Indices, window: int, seed: int, per_step: int, shares: Sequence[Share]
    ) -> None:
        self._windows = Windows(bounds, window, seed)
        self._units, self._per_step = int(bounds[-1]), per_step
        self._seed, self._shares = seed, shares
        self._cached: tuple[int, Indices, Indices] | None = None

    def take(
        self, epoch: int, step: int, rows: Indices
    ) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
        """Return units, passes and validity, each (N,), of rows (N,) of a batch."""
        positions = step * self._per_step + rows
        order, passes = self._order(epoch)
        within = positions % self._units
        return order[within], passes[within], positions < self._units

    def shards(
        self, epoch: int, step: int, rows: tuple[int, int], *, steps: int, ahead: int
    ) -> tuple[list[int], list[int]]:
        """Return the shards that a batch may read from, and the next ``ahead`` after them.

        Args:
            epoch: of the batch.
            step: of the batch.
            rows: the first and the last row, which may read from any of these shards.
            steps: number of steps of an epoch; what lies beyond them is dropped.
            ahead: number of shards to announce.
        """
        first, last = step * self._per_step, (step + 1) * self._per_step - 1
        used = steps * self._per_step
        return self._windows.read(epoch, first, last, used=used, ahead=ahead)

    def shards_of_epoch(self, epoch: int, rows: tuple[int, int], *, steps: int) -> list[int]:
        """Return the shards that these rows of all batches of an epoch may read from."""
        used = steps * self._per_step
        return self._windows.read(epoch, 0, used - 1, used=used, ahead=0)[0]

    def within(self, steps: int, *, wraps: bool) -> int:
        """Return an upper bound of the shards that ``steps`` consecutive batches read from."""
        return self._windows.within(steps * self._per_step)

    def _order(self, epoch: int) -> tuple[Indices, Indices]:
        """Return the order of the epoch and the pass of each unit, both (units,).

        Caches the most recent epoch, since a permutation of millions costs more than a step.
        """
        if self._cached is None or self._cached[0] != epoch:
            if self._shares:
                units, passes = self._weighted(epoch)
            else:
                units = self._windows.units(epoch)
                passes = np.full_like(units, epoch)
            self._cached = (epoch, units, passes)
        return self._cached[1:]

    def _weighted(self, epoch: int) -> tuple[Indices, Indices]:
        parts = [share.take(self._seed, epoch) for share in self._shares]
        shuffled = epoch_generator(self._seed, epoch).permutation(self._units)
        units, passes = (np.concatenate(column)[shuffled] for column in zip(*parts, strict=True))
        return units, passes
