"""The order of training: which (image, caption) pairs make up the batch of (epoch, step).

Everything here is a pure function of the captions per image, the seed and the global batch. The
number of ranks only decides where a batch is cut, so the position (epoch, step) is all there is to
resume, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vse_scale.data import rng
from vse_scale.errors import ConfigError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlannedBatch:
    """The pairs of one batch, or of one rank's part of it.

    Attributes:
        pairs: (B, 2) int64, image index in the split and caption index within the image.
        valid: (B,) bool, False for pairs that only complete the last batch of an epoch.
        visits: (B,) int64, how often training has been through the pair's dataset before: the
            epoch, unless datasets are mixed.
    """

    pairs: Indices
    valid: npt.NDArray[np.bool_]
    visits: Indices


class Plan:
    """The batches of every epoch.

    In mode ``pairs`` an epoch visits each (image, caption) pair once, as published. In mode
    ``images`` it visits each image once with ``captions_per_image`` = k of its captions, which
    stand side by side; epoch e takes entries e * k to e * k + k - 1 of an endless repetition of one
    random order of the image's captions. Hence any n entries in a row, n being the image's number
    of captions, are all of them, and no caption comes twice in an epoch.

    Several datasets can be mixed with weights. An epoch has as many pairs (or images) as all have
    together, shared out by weight and shuffled. Each dataset is gone through again and again, in a
    new order each time, and an epoch goes on where the one before it stopped: a dataset of little
    weight takes several epochs, one of much weight comes several times in one.

    With ``shuffle_window`` = W > 0 the shards are permuted and then the samples within each W
    shards, which keeps the reads of a while within W files. With 0 the whole split is permuted.
    """

    def __init__(
        self,
        captions_per_sample: npt.ArrayLike,
        *,
        seed: int,
        global_batch: int,
        mode: Literal["pairs", "images"] = "pairs",
        captions_per_image: int = 1,
        last_batch: Literal["drop", "wrap"] = "drop",
        shard_sizes: Sequence[int] | None = None,
        shuffle_window: int = 0,
        dataset_sizes: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Lay out the epochs.

        Args:
            captions_per_sample: (I,) number of captions of each image.
            seed: below 2**32.
            global_batch: pairs per step over all ranks.
            mode: what an epoch visits once, see the class.
            captions_per_image: k of mode ``images``; 1 in mode ``pairs``.
            last_batch: leave out the pairs that fill no batch, or wrap around to the start of the
                epoch and mark what is repeated as not valid.
            shard_sizes: images of each shard, in order; needed with ``shuffle_window``. None: one.
            shuffle_window: shards that are shuffled together; 0 for all.
            dataset_sizes: images of each dataset, in order, where several are mixed.
            weights: of each dataset's share of an epoch; None: each as often as it is large.

        Raises:
            ConfigError: an epoch would have no step, or the batch does not hold whole images, or
                an image has fewer than ``captions_per_image`` captions; or datasets are mixed
                within a window, or one that has a weight has no pairs.
        """
        self._captions = np.asarray(captions_per_sample, dtype=np.int64)
        self.seed = seed
        self.global_batch = global_batch
        self.captions_per_image = captions_per_image
        self._mode = mode
        # Pairs are numbered image by image; image i has the pairs from _first_pair[i] on.
        self._first_pair = np.concatenate([[0], np.cumsum(self._captions)])
        if mode == "pairs" and captions_per_image != 1:
            raise ValueError("captions_per_image belongs to mode images")
        self._check(last_batch)
        per_step = global_batch // captions_per_image
        full, rest = divmod(self.units, per_step)
        self.steps_per_epoch = full + (1 if rest and last_batch == "wrap" else 0)
        self._window = shuffle_window
        if shard_sizes is None:
            shard_sizes = [len(self._captions)]
            if shuffle_window:
                raise ValueError("shuffle_window needs the number of images of every shard")
        if sum(shard_sizes) != len(self._captions):
            raise ValueError("the shards must hold all images, and no more")
        self._unit_bounds = self._bounds(shard_sizes)
        self._mixed: list[_Share] = []
        if weights is not None:
            self._mix(dataset_sizes or (), weights)
        self._cached: tuple[int, Indices, Indices] | None = None

    @property
    def units(self) -> int:
        """What an epoch permutes: the split's pairs, or in mode ``images`` its images."""
        return len(self._captions) if self._mode == "images" else int(self._first_pair[-1])

    def batch(self, epoch: int, step: int) -> PlannedBatch:
        """Return the global batch of ``step`` in ``epoch``, both counted from 0.

        Raises:
            IndexError: there is no such step.
        """
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise IndexError(
                f"epoch {epoch}, step {step}: an epoch has steps 0 to {self.steps_per_epoch - 1}"
            )
        k = self.captions_per_image
        positions = step * (self.global_batch // k) + np.arange(self.global_batch // k)
        order, visits = self._order(epoch)
        units, visits = order[positions % self.units], visits[positions % self.units]
        valid = np.repeat(positions < self.units, k)
        if self._mode == "images":
            images, captions = np.repeat(units, k), self._choose_captions(units, visits).ravel()
            visits = np.repeat(visits, k)
        else:
            # The last image whose first pair is not beyond: right of all that start at the pair,
            # so that images without captions are passed over.
            images = np.searchsorted(self._first_pair, units, side="right") - 1
            captions = units - self._first_pair[images]
        return PlannedBatch(np.stack([images, captions], axis=1), valid, visits)

    def part(self, epoch: int, step: int, rank: int, ranks: int) -> PlannedBatch:
        """Return the contiguous part of a batch that ``rank`` of ``ranks`` trains on.

        Raises:
            ConfigError: the batch does not divide into parts of whole images.
        """
        size, rest = divmod(self.global_batch, ranks)
        if rest or size % self.captions_per_image:
            raise ConfigError(
                f"data.global_batch is {self.global_batch}, not divisible by {ranks} ranks x "
                f"{self.captions_per_image} captions per image; set a multiple of "
                f"{ranks * self.captions_per_image}"
            )
        whole = self.batch(epoch, step)
        rows = slice(rank * size, (rank + 1) * size)
        return PlannedBatch(whole.pairs[rows], whole.valid[rows], whole.visits[rows])

    def following(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the position after (epoch, step)."""
        return (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def shards(self, epoch: int, step: int, ahead: int = 0) -> tuple[list[int], list[int]]:
        """Return the shards of which a batch may hold pairs, and the ``ahead`` that come next.

        With ``shuffle_window`` these are all shards of the window that the batch lies in, or of
        the two that it straddles; without, they are all shards of the split.
        """
        count = len(self._unit_bounds) - 1
        if not self._window:
            return list(range(count)), []
        order = self._shard_order(epoch)
        ends = np.cumsum(np.diff(self._unit_bounds)[order])

        def window(position: int) -> int:
            """Return the place in ``order`` where the window of this position begins."""
            return int(np.searchsorted(ends, position, side="right")) // self._window * self._window

        per_step = self.global_batch // self.captions_per_image
        first, last = step * per_step, (step + 1) * per_step - 1
        begin = window(first)
        stop = window(min(last, self.units - 1)) + self._window
        now = order[begin:stop].tolist()
        if last >= self.units:  # wrapped around, to complete the last batch
            now += order[: window((last - self.units) % self.units) + self._window].tolist()
        # What the epoch drops at its end may be whole windows.
        used = window(min(self.steps_per_epoch * per_step, self.units) - 1) + self._window
        rest = [*order[stop:used].tolist(), *self._shard_order(epoch + 1).tolist()]
        then = [shard for shard in dict.fromkeys(rest) if shard not in now]
        return list(dict.fromkeys(now)), then[:ahead]

    def shards_within(self, steps: int) -> int:
        """Return a bound of the number of shards that ``steps`` batches in a row read from."""
        count = len(self._unit_bounds) - 1
        if not self._window:
            return count
        # Windows that begin or end within the stretch, at a turn of the epoch one more; between
        # them whole windows, of the smallest shards at worst. A turn may drop less than a batch.
        units = (steps + 1) * (self.global_batch // self.captions_per_image)
        smallest = np.cumsum(np.sort(np.diff(self._unit_bounds)))
        within = int(np.searchsorted(smallest, units, side="right"))
        return min(count, 3 * self._window + within)

    def _shard_order(self, epoch: int) -> Indices:
        """Return the shards in the order in which the epoch's windows take them."""
        return _generator(self.seed, epoch).permutation(len(self._unit_bounds) - 1)

    def _bounds(self, sizes: Sequence[int]) -> Indices:
        """Return where the units of runs of ``sizes`` images begin and end."""
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return bounds if self._mode == "images" else self._first_pair[bounds]

    def _order(self, epoch: int) -> tuple[Indices, Indices]:
        """Return (units,) the epoch's order, and the visit that each is.

        What was asked for last is kept.
        """
        if self._cached is None or self._cached[0] != epoch:
            generator = _generator(self.seed, epoch)
            if self._mixed:
                units, visits = self._weighted(generator, epoch)
            else:
                units = self._windowed(generator) if self._window else self._whole(generator)
                visits = np.full_like(units, epoch)
            self._cached = (epoch, units, visits)
        return self._cached[1:]

    def _weighted(self, generator: np.random.Generator, epoch: int) -> tuple[Indices, Indices]:
        parts = [share.take(self.seed, epoch) for share in self._mixed]
        shuffled = generator.permutation(self.units)
        units, visits = (np.concatenate(column)[shuffled] for column in zip(*parts, strict=True))
        return units, visits

    def _whole(self, generator: np.random.Generator) -> Indices:
        return generator.permutation(self.units)

    def _windowed(self, generator: np.random.Generator) -> Indices:
        bounds = self._unit_bounds
        shards = generator.permutation(len(bounds) - 1)
        windows = []
        for start in range(0, len(shards), self._window):
            chosen = shards[start : start + self._window]
            units = np.concatenate([np.arange(bounds[s], bounds[s + 1]) for s in chosen])
            windows.append(generator.permutation(units))
        return np.concatenate(windows)

    def _choose_captions(self, images: Indices, visits: Indices) -> Indices:
        """Return (N, k) caption indices of each image for this visit."""
        counts = self._captions[images]
        order = self._caption_orders(images, int(counts.max()))
        k = self.captions_per_image
        entries = visits[:, None] * k + np.arange(k)
        return np.take_along_axis(order, entries % counts[:, None], axis=1)

    def _caption_orders(self, images: Indices, most: int) -> Indices:
        """Return (N, most) each image's own order of its captions, what it lacks at the end."""
        pairs = np.stack([images, np.zeros_like(images)], axis=1)
        keys = rng.uniform(self.seed, 0, pairs, rng.Stream.CAPTION_ORDER, most)
        keys[np.arange(most) >= self._captions[images][:, None]] = np.inf
        return np.argsort(keys, axis=1, kind="stable")

    def _mix(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        """Share an epoch's units out over the datasets, by the largest remainder."""
        if sum(sizes) != len(self._captions) or len(sizes) != len(weights):
            raise ValueError("weights need the number of images of every dataset")
        if self._window:
            raise ConfigError(
                f"data.shuffle_window is {self._window}, which knows no weights; set "
                "data.shuffle_window=0, or leave data.weights out"
            )
        bounds = self._bounds(sizes)
        for number, units in enumerate(np.diff(bounds)):
            if not units:
                raise ConfigError(
                    f"data.weights gives {weights[number]} to dataset {number + 1}, which has no "
                    "pairs to train on; take it out"
                )
        exact = self.units * np.asarray(weights, dtype=np.float64) / sum(weights)
        counts = np.floor(exact).astype(np.int64)
        largest = np.argsort(counts - exact, kind="stable")
        counts[largest[: self.units - counts.sum()]] += 1
        self._mixed = [
            _Share(number, int(first), int(size), int(count))
            for number, (first, size, count) in enumerate(
                zip(bounds[:-1], np.diff(bounds), counts, strict=True)
            )
        ]

    def _check(self, last_batch: str) -> None:
        batch, k, pairs = self.global_batch, self.captions_per_image, int(self._first_pair[-1])
        if not pairs:
            raise ConfigError("data.split holds 0 pairs to train on; choose a split with captions")
        if self._mode == "images":
            if batch % k:
                raise ConfigError(
                    f"data.global_batch is {batch}, not divisible by {k} captions per image; "
                    f"set {max(batch // k, 1) * k}"
                )
            few = np.flatnonzero(self._captions < k)
            if len(few):
                least = int(self._captions.min())
                remedy = f"at most {least}, or " if least else ""
                raise ConfigError(
                    f"data.captions_per_image is {k}, but {len(few)} of {len(self._captions)} "
                    f"images have fewer captions (the first, image {few[0]}, has "
                    f"{self._captions[few[0]]}); set {remedy}data.mode=pairs with 1"
                )
        available = self.units * k
        if last_batch == "drop" and available < batch:
            raise ConfigError(
                f"data.global_batch is {batch}, but an epoch has {available} pairs, so it would "
                f"have no step; set at most {available}, or data.last_batch=wrap"
            )


@dataclass(frozen=True)
class _Share:
    """One dataset's part of a mixture.

    Attributes:
        number: of the dataset.
        first: of its units.
        size: how many it has.
        count: how many of them an epoch takes.
    """

    number: int
    first: int
    size: int
    count: int

    def take(self, seed: int, epoch: int) -> tuple[Indices, Indices]:
        """Return the units of ``epoch`` (count,), and which visit each is."""
        entries = epoch * self.count + np.arange(self.count, dtype=np.int64)
        visits, places = np.divmod(entries, self.size)
        units = np.empty_like(entries)
        for visit in np.unique(visits):
            order = _generator(seed, int(visit), 1 + self.number).permutation(self.size)
            chosen = visits == visit
            units[chosen] = self.first + order[places[chosen]]
        return units, visits


def _generator(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    """Return a generator for (seed, epoch); those of other streams are independent of it."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
