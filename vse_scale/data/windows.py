"""Shards in an order of their own for every epoch, shuffled within windows of a few at a time."""

from __future__ import annotations

import numpy as np

from vse_scale.data.shares import Indices, epoch_generator


class Windows:
    """The shards of a split, permuted for every epoch and cut into windows of ``size`` shards.

    The unit is a pair, or in mode ``images`` an image. A batch reads from the one or two windows
    that contain it, which limits how many files are open, and on this machine, at a time.

    Args:
        bounds: (shards + 1,) the first unit of each shard, and the number of all units.
        size: shards of a window; 0 puts all of them into one.
        seed: seed of the permutations.
    """

    def __init__(self, bounds: Indices, size: int, seed: int) -> None:
        self._bounds, self.size, self._seed = bounds, size, seed
        self.count = len(bounds) - 1

    def order(self, epoch: int) -> Indices:
        """Return the shards in the order of the epoch's windows."""
        return epoch_generator(self._seed, epoch).permutation(self.count)

    def units(self, epoch: int) -> Indices:
        """Return the units of all shards, shuffled within each window of the epoch."""
        generator = epoch_generator(self._seed, epoch)
        if not self.size:
            return generator.permutation(int(self._bounds[-1]))
        shards = generator.permutation(self.count)
        windows = []
        for start in range(0, self.count, self.size):
            chosen = shards[start : start + self.size]
            units = [np.arange(self._bounds[s], self._bounds[s + 1]) for s in chosen]
            windows.append(generator.permutation(np.concatenate(units)))
        return np.concatenate(windows)

    def read(
        self, epoch: int, first: int, last: int, *, used: int, ahead: int
    ) -> tuple[list[int], list[int]]:
        """Return the shards that a batch may read from, and the next ``ahead`` after them.

        Args:
            epoch: of the batch.
            first: position in the epoch of the batch's first unit.
            last: position of its last unit, beyond the end if the batch wraps around.
            used: number of positions that the epoch reads; those after them are dropped.
            ahead: number of shards to announce.
        """
        if not self.size:
            return list(range(self.count)), []
        order = self.order(epoch)
        ends = np.cumsum(np.diff(self._bounds)[order])
        total = int(self._bounds[-1])

        def window(position: int) -> int:
            """Return the index in ``order`` at which the window of this position begins."""
            return int(np.searchsorted(ends, position, side="right")) // self.size * self.size

        stop = window(min(last, total - 1)) + self.size
        now = order[window(first) : stop].tolist()
        if last >= total:  # wrapped around, to complete the last batch
            now += order[: window((last - total) % total) + self.size].tolist()
        # The positions that an epoch drops at its end may be whole windows, which are never read.
        end = window(min(used, total) - 1) + self.size
        rest = [*order[stop:end].tolist(), *self.order(epoch + 1).tolist()]
        then = [shard for shard in dict.fromkeys(rest) if shard not in now]
        return list(dict.fromkeys(now)), then[:ahead]

    def within(self, units: int) -> int:
        """Return an upper bound of the shards that ``units`` consecutive units are read from."""
        if not self.size:
            return self.count
        # The windows in which the units begin and end, and one more at a turn of the epoch;
        # between them whole windows, at worst of the smallest shards.
        smallest = np.cumsum(np.sort(np.diff(self._bounds)))
        between = int(np.searchsorted(smallest, units, side="right"))
        return min(self.count, 3 * self.size + between)
