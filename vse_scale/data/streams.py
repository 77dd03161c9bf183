"""The order of an epoch, computed where it is needed: canonical streams, windows and shares.

A dataset's shards are permuted for each pass and laid end to end; that line of units is cut into
equal spans, one for each stream. A unit is a pair, or in mode ``images`` an image. A batch takes as
many units of each stream, in the stream's own order, which permutes one window after another. So
ranks that train on one part of the batch read from the shards of their own streams alone, and what
a batch holds still does not depend on the number of ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vse_scale.data.permutation import Permutation, Purpose
from vse_scale.data.shares import Indices, Share

_PERMUTATIONS = 8  # that are kept of a dataset, beside two for each stream


class Streams:
    """One dataset in canonical streams.

    Args:
        bounds: (shards + 1,) the first unit of each shard, and the end of the last.
        seed: of the run.
        streams: number of streams, at most the number of units.
        window: shards that are shuffled together, over all streams; 0: each stream is one window.
        number: index of the dataset.

    Attributes:
        sizes: (streams,) units of each stream.
    """

    def __init__(
        self, bounds: Indices, *, seed: int, streams: int, window: int = 0, number: int = 0
    ) -> None:
        self._bounds, self._seed, self._number = bounds, seed, number
        units, shards = int(bounds[-1] - bounds[0]), len(bounds) - 1
        self.sizes = units // streams + (np.arange(streams) < units % streams)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        # As many units as `window` average shards have, and each stream's share of them.
        share = -(-units * window // (shards * streams))
        self.window = min(share, int(self.sizes[0])) if window else int(self.sizes[0])
        self._whole = streams == 1 and not window
        self._permuted = lru_cache(_PERMUTATIONS + 2 * streams)(self._permutation)
        self._shards = lru_cache(4)(self._permuted_shards)

    def units(self, passed: int, stream: int, offsets: Indices) -> Indices:
        """Return the units (N,) at ``offsets`` (N,) of a stream, in pass ``passed``."""
        windows, within = np.divmod(offsets, self.window)
        line = np.empty_like(offsets)
        for window in np.unique(windows).tolist():
            here = windows == window
            line[here] = self._permuted(passed, stream, window)[within[here]]
        line += windows * self.window + self._starts[stream]
        if self._whole:  # a permutation of all units: the order of the shards adds nothing
            line += self._bounds[0]
            return line
        order, ends = self._shards(passed)
        place = np.searchsorted(ends, line, side="right")
        units: Indices = self._bounds[order[place] + 1] - (ends[place] - line)
        return units

    def span(self, stream: int, first: int, last: int) -> tuple[int, int]:
        """Return begin and end in the line of the windows of two offsets of a stream."""
        begin, end = first // self.window * self.window, (last // self.window + 1) * self.window
        start = int(self._starts[stream])
        return start + begin, start + min(end, int(self.sizes[stream]))

    def shards(self, passed: int, begin: int, end: int) -> list[int]:
        """Return the shards of a part of the line, in its order."""
        if begin >= end:
            return []
        order, ends = self._shards(passed)
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, end - 1, side="right"))
        found: list[int] = order[first : last + 1].tolist()
        return found

    def _permutation(self, passed: int, stream: int, window: int) -> Permutation:
        size = min(self.window, int(self.sizes[stream]) - window * self.window)
        return Permutation(
            size, Purpose.UNITS, seed=self._seed, passed=passed, dataset=self._number,
            index=(stream << 40) + window,
        )  # fmt: skip

    def _permuted_shards(self, passed: int) -> tuple[Indices, Indices]:
        """Return the shards in the order of a pass, and the end of each in the line."""
        count = len(self._bounds) - 1
        permutation = Permutation(
            count, Purpose.SHARDS, seed=self._seed, passed=passed, dataset=self._number
        )
        order = permutation[np.arange(count)]
        return order, np.cumsum(np.diff(self._bounds)[order])


class ComputedOrder:
    """The units of every batch, computed at O(rows) a part of a batch.

    Args:
        bounds: (shards + 1,) the first unit of each shard, and the number of all units.
        seed: of the run.
        per_step: units of a batch, a multiple of ``streams``.
        streams: number of streams, at most the number of units of each dataset.
        window: shards that are shuffled together, over all streams; 0: each stream is one window.
        shares: shares of mixed datasets, which know no window.
    """

    def __init__(
        self,
        bounds: Indices,
        *,
        seed: int,
        per_step: int,
        streams: int,
        window: int = 0,
        shares: Sequence[Share] = (),
    ) -> None:
        self._seed, self._streams, self._each = seed, streams, per_step // streams
        self._count, self._shares = len(bounds) - 1, shares
        self._smallest = np.cumsum(np.sort(np.diff(bounds)))
        self._datasets = [
            Streams(_shards_of(bounds, share), seed=seed, streams=streams, number=share.number)
            for share in shares
        ] or [Streams(bounds, seed=seed, streams=streams, window=window)]
        self._whole = bool(shares) or (streams == 1 and not window)
        self._taken = _dealt([share.count for share in shares], streams)
        self._sizes = self._taken.sum(axis=1) if shares else self._datasets[0].sizes
        # The same from step to step, until a window ends.
        self._announced = lru_cache(_PERMUTATIONS + streams)(self._following)
        self._interleaved = lru_cache(_PERMUTATIONS + streams)(self._permutation)

    def take(
        self, epoch: int, step: int, rows: Indices
    ) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
        """Return units, passes and validity, each (N,), of rows (N,) of a batch."""
        streams, offsets = np.divmod(rows, self._each)
        offsets += step * self._each
        valid = offsets < self._sizes[streams]
        offsets %= self._sizes[streams]
        units, passes = np.empty_like(rows), np.empty_like(rows)
        for stream in np.unique(streams).tolist():
            here = streams == stream
            units[here], passes[here] = self._of_stream(epoch, stream, offsets[here])
        return units, passes, valid

    def shards(
        self, epoch: int, step: int, rows: tuple[int, int], *, steps: int, ahead: int
    ) -> tuple[list[int], list[int]]:
        """Return the shards that rows of a batch may read from, and the next ``ahead`` after them.

        Args:
            epoch: of the batch.
            step: of the batch.
            rows: the first and the last row.
            steps: number of steps of an epoch; what lies beyond them is dropped.
            ahead: number of shards to announce.
        """
        if self._whole:
            return list(range(self._count)), []
        dataset, spans = self._datasets[0], []
        for stream in self._streams_of(rows):
            size = int(dataset.sizes[stream])
            first, last = step * self._each, (step + 1) * self._each - 1
            spans.append((stream, *dataset.span(stream, first, min(last, size - 1))))
            if last >= size:  # wrapped around, to complete the last batch
                end = min(last, 2 * size - 1) - size
                spans.append((stream, *dataset.span(stream, 0, end)))
        now, then = self._announced(epoch, tuple(spans), steps, ahead)
        return list(now), list(then)

    def shards_of_epoch(self, epoch: int, rows: tuple[int, int], *, steps: int) -> list[int]:
        """Return the shards that these rows of all batches of an epoch may read from."""
        if self._whole:
            return list(range(self._count))
        dataset = self._datasets[0]
        read = (dataset.shards(epoch, *self._used(n, steps)) for n in self._streams_of(rows))
        return list(dict.fromkeys(itertools.chain.from_iterable(read)))

    def within(self, steps: int, *, wraps: bool) -> int:
        """Return an upper bound of the shards that ``steps`` consecutive batches read from.

        Args:
            steps: number of batches.
            wraps: whether the last batch of an epoch is completed from its start.
        """
        if self._whole:
            return self._count
        # In each stream the whole windows, those in which the units begin and end, and one more at
        # a turn of the epoch; a batch that wraps around reads from another. Every run of windows
        # may begin and end within a shard, and holds at worst the smallest ones.
        window = self._datasets[0].window
        units = (steps * self._each // window + 3 + wraps) * window
        between = int(np.searchsorted(self._smallest, units, side="right"))
        return min(self._count, self._streams * (between + 4 + 2 * wraps))

    def _streams_of(self, rows: tuple[int, int]) -> range:
        return range(rows[0] // self._each, rows[1] // self._each + 1)

    def _used(self, stream: int, steps: int) -> tuple[int, int]:
        """Return begin and end in the line of what an epoch reads of a stream."""
        dataset = self._datasets[0]
        last = min(steps * self._each, int(dataset.sizes[stream])) - 1
        return dataset.span(stream, 0, last)

    def _following(
        self, epoch: int, spans: tuple[tuple[int, int, int], ...], steps: int, ahead: int
    ) -> tuple[list[int], list[int]]:
        """Return the shards of spans (stream, begin, end) of the line, and the next ``ahead``."""
        dataset = self._datasets[0]
        now = [shard for _, *span in spans for shard in dataset.shards(epoch, *span)]
        rest, ends = [], dict[int, int]()
        for stream, _, end in spans:
            ends.setdefault(stream, end)  # a second span begins the stream again
        for stream, end in ends.items():
            used = self._used(stream, steps)
            rest.append(dataset.shards(epoch, end, used[1]) + dataset.shards(epoch + 1, *used))
        known = dict.fromkeys(now)
        then = (shard for shard in dict.fromkeys(_in_turn(rest)) if shard not in known)
        return list(known), list(itertools.islice(then, ahead))

    def _of_stream(self, epoch: int, stream: int, offsets: Indices) -> tuple[Indices, Indices]:
        """Return units and passes, both (N,), at offsets (N,) of a stream of an epoch."""
        if not self._shares:
            return self._datasets[0].units(epoch, stream, offsets), np.full_like(offsets, epoch)
        taken = self._taken[stream]
        ends = np.cumsum(taken)
        drawn = self._interleaved(epoch, stream)[offsets]
        chosen = np.searchsorted(ends, drawn, side="right")
        # A dataset's entries of one epoch follow those of the epoch before it.
        entries = drawn - (ends - taken)[chosen] + epoch * taken[chosen]
        units, passes = np.empty_like(offsets), np.empty_like(offsets)
        for number in np.unique(chosen).tolist():
            dataset = self._datasets[number]
            passed, within = np.divmod(entries, dataset.sizes[stream])
            for index in np.unique(passed[chosen == number]).tolist():
                here = (chosen == number) & (passed == index)
                units[here], passes[here] = dataset.units(index, stream, within[here]), index
        return units, passes

    def _permutation(self, epoch: int, stream: int) -> Permutation:
        size = int(self._sizes[stream])
        return Permutation(size, Purpose.DATASETS, seed=self._seed, passed=epoch, index=stream)


def _shards_of(bounds: Indices, share: Share) -> Indices:
    """Return the first unit of each shard of a dataset, and the end of the last."""
    first, end = share.first, share.first + share.size
    return np.concatenate([[first], bounds[(bounds > first) & (bounds < end)], [end]])


def _dealt(counts: Sequence[int], streams: int) -> Indices:
    """Divide each count over the streams, (streams, datasets), so that their sums differ by 1."""
    dealt = np.empty((streams, len(counts)), np.int64)
    first = 0
    for number, count in enumerate(counts):
        whole, rest = divmod(count, streams)
        dealt[:, number] = whole + ((np.arange(streams) - first) % streams < rest)
        first = (first + rest) % streams
    return dealt


def _in_turn(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield the first entries of all lists, then the second ones, and so on."""
    for place in range(max(map(len, lists), default=0)):
        yield from (entries[place] for entries in lists if place < len(entries))
