"""The order of training: the (image, caption) pairs in the batch of (epoch, step).

Everything here is a pure function of the captions per image, the seed, the global batch and the
number of streams. The number of ranks only decides where a batch is cut, so the position (epoch,
step) is all the state that a run needs to resume, on any number of ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vse_scale.data import rng
from vse_scale.data.counts import CaptionCounts
from vse_scale.data.held import HeldOrder
from vse_scale.data.shares import Indices, Share, divide
from vse_scale.data.streams import ComputedOrder
from vse_scale.errors import ConfigError

__all__ = ["ORDER", "Indices", "Plan", "PlanError", "PlannedBatch"]

ORDER = 2
"""Version of the order of training; a run keeps the one that it was begun with."""

_HELD_ORDER = 1  # the version in which every order is an array
_FEW = 1 << 20  # units: up to here the order is an array in either version
_STREAMS = 8  # by default, where shards are read in windows


class PlanError(ConfigError):
    """Arguments that give no plan; the message names them in backticks."""

    def renamed(self, names: Mapping[str, str]) -> ConfigError:
        """Return the error in the words of a caller that has other names for the arguments.

        Args:
            names: the caller's names by argument; arguments that are not in it keep theirs.
        """
        text = re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), str(self))
        return ConfigError(text)


@dataclass(frozen=True)
class PlannedBatch:
    """The pairs of one batch, or of one rank's part of it.

    Attributes:
        pairs: (B, 2) int64, image index in the split and caption index within the image.
        valid: (B,) bool, False for pairs that only complete the last batch of an epoch.
        passes: (B,) int64, number of earlier passes over the pair's dataset: the epoch, unless
            datasets are mixed.
    """

    pairs: Indices
    valid: npt.NDArray[np.bool_]
    passes: Indices


class Plan:
    """The batches of every epoch.

    In mode ``pairs`` an epoch contains each (image, caption) pair once, as published. In mode
    ``images`` it contains each image once with ``captions_per_image`` = k of its captions, side by
    side; epoch e takes entries e * k to e * k + k - 1 of an endless repetition of one random order
    of the image's captions. Hence any n consecutive entries, n being the image's number of
    captions, are all of them, and no caption occurs twice in an epoch.

    Several datasets can be mixed with weights. An epoch has as many pairs (or images) as all of
    them together, divided by weight and shuffled. Each dataset is passed over again and again, in a
    new order each time, and an epoch continues where the one before it stopped: a dataset of small
    weight takes several epochs, one of large weight occurs several times in one.

    With ``shuffle_window`` = W > 0 the shards are permuted and then the samples within each W
    shards, which limits the files that are read at a time to W. With 0 the whole split is permuted.

    With ``streams`` = G the permuted shards are cut into G equal spans, and every batch takes as
    much of each, shuffled within it. Ranks that train on one part of the batch then read from the
    shards of few spans. The window is divided over the streams, at least a part of a shard each.

    Below 2**20 units and with one stream an epoch's order is held as an array. Otherwise each part
    of a batch is computed by itself, in time and memory that do not grow with the split.

    Attributes:
        seed: of the order.
        global_batch: pairs per step over all ranks.
        captions_per_image: pairs of an image that stand together.
        steps_per_epoch: number of batches of an epoch.
        streams: number of streams.
        order: version of the order.
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
        streams: int | None = None,
        order: int = ORDER,
    ) -> None:
        """Lay out the epochs.

        Args:
            captions_per_sample: (I,) number of captions of each image, of any integer type. It is
                kept as it is, and may be a mapped file.
            seed: below 2**32.
            global_batch: pairs per step over all ranks.
            mode: unit of an epoch, see the class.
            captions_per_image: k of mode ``images``; 1 in mode ``pairs``.
            last_batch: omit the pairs that fill no batch, or wrap around to the start of the epoch
                and mark repeated pairs as not valid.
            shard_sizes: images of each shard, in order; required with ``shuffle_window``. None:
                one shard.
            shuffle_window: number of shards that are shuffled together; 0 for all.
            dataset_sizes: images of each dataset, in order, if several are mixed.
            weights: share of each dataset in an epoch; None: proportional to its size.
            streams: parts of the split that every batch takes equally much from. None: up to 8
                from 2**20 units on where there is a ``shuffle_window``, else 1.
            order: version of the order, 1 or 2; what a run was begun with.

        Raises:
            PlanError: an epoch would have no step, or the batch does not hold whole images or
                divide into streams, or an image has fewer than ``captions_per_image`` captions;
                or datasets are mixed within a window, or one that has a weight has no pairs, or
                fewer than there are streams.
        """
        self._counts = CaptionCounts(captions_per_sample)
        self.seed = seed
        self.global_batch = global_batch
        self.captions_per_image = captions_per_image
        self.order = order
        self._mode = mode
        self._wraps = last_batch == "wrap"
        if mode == "pairs" and captions_per_image != 1:
            raise ValueError("captions_per_image belongs to mode images")
        self._check()
        self._per_step = global_batch // captions_per_image
        full, rest = divmod(self.units, self._per_step)
        self.steps_per_epoch = full + (1 if rest and self._wraps else 0)
        shard_sizes = self._sizes(shard_sizes, shuffle_window)
        shares: list[Share] = []
        if weights is not None:
            shares = self._mix(dataset_sizes or (), weights, shuffle_window)
        self.streams = self._choose_streams(streams, shuffle_window)
        self._check_streams([share.size for share in shares] or [self.units])
        bounds = self._bounds(shard_sizes)
        self._order: HeldOrder | ComputedOrder
        if self.streams == 1 and (order == _HELD_ORDER or self.units < _FEW):
            self._order = HeldOrder(bounds, shuffle_window, seed, self._per_step, shares)
        else:
            self._order = ComputedOrder(
                bounds, seed=seed, per_step=self._per_step, streams=self.streams,
                window=shuffle_window, shares=shares,
            )  # fmt: skip

    @property
    def units(self) -> int:
        """Length of an epoch: the split's pairs, or in mode ``images`` its images."""
        return len(self._counts) if self._mode == "images" else self._counts.pairs

    def batch(self, epoch: int, step: int) -> PlannedBatch:
        """Return the global batch of ``step`` in ``epoch``, both counted from 0.

        Raises:
            IndexError: there is no such step.
        """
        return self._rows(epoch, step, 0, self._per_step)

    def part(self, epoch: int, step: int, rank: int, ranks: int) -> PlannedBatch:
        """Return the contiguous part of a batch that ``rank`` of ``ranks`` trains on.

        Raises:
            PlanError: the batch does not divide into parts of whole images.
            IndexError: there is no such step.
        """
        return self._rows(epoch, step, *self._part(rank, ranks))

    def following(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the position after (epoch, step)."""
        return (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def shards(
        self, epoch: int, step: int, ahead: int = 0, *, rank: int = 0, ranks: int = 1
    ) -> tuple[list[int], list[int]]:
        """Return the shards that a batch may read from, and the next ``ahead`` after them.

        With ``shuffle_window`` these are all shards of the one or two windows that contain the
        batch; without, they are all shards of the split. With ``streams`` they are those of the
        streams that the part of ``rank`` takes units of.
        """
        first, end = self._part(rank, ranks)
        return self._order.shards(
            epoch, step, (first, end - 1), steps=self.steps_per_epoch, ahead=ahead
        )

    def shards_of_epoch(self, epoch: int, *, rank: int = 0, ranks: int = 1) -> list[int]:
        """Return the shards that the part of ``rank`` of an epoch's batches may read from."""
        first, end = self._part(rank, ranks)
        return self._order.shards_of_epoch(epoch, (first, end - 1), steps=self.steps_per_epoch)

    def shards_within(self, steps: int) -> int:
        """Return an upper bound of the shards that ``steps`` consecutive batches read from."""
        # A turn of the epoch may drop less than a batch, hence one step more.
        return self._order.within(steps + 1, wraps=self._wraps)

    def _rows(self, epoch: int, step: int, first: int, end: int) -> PlannedBatch:
        """Return the pairs of the units ``first`` to ``end`` - 1 of a batch."""
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise IndexError(
                f"epoch {epoch}, step {step}: an epoch has steps 0 to {self.steps_per_epoch - 1}"
            )
        k = self.captions_per_image
        units, passes, valid = self._order.take(epoch, step, np.arange(first, end))
        if self._mode == "images":
            image_indices = np.repeat(units, k)
            captions = self._choose_captions(units, passes).ravel()
            valid, passes = np.repeat(valid, k), np.repeat(passes, k)
        else:
            image_indices, captions = self._counts.find(units)
        return PlannedBatch(np.stack([image_indices, captions], axis=1), valid, passes)

    def _part(self, rank: int, ranks: int) -> tuple[int, int]:
        """Return the first unit in a batch that a rank trains on, and the one after its last."""
        size, rest = divmod(self.global_batch, ranks)
        if rest or size % self.captions_per_image:
            raise PlanError(
                f"`global_batch` is {self.global_batch}, not divisible by {ranks} ranks x "
                f"{self.captions_per_image} captions per image; set a multiple of "
                f"{ranks * self.captions_per_image}"
            )
        units = size // self.captions_per_image
        return rank * units, (rank + 1) * units

    def _bounds(self, sizes: Sequence[int]) -> Indices:
        """Return the first unit of each run of ``sizes`` images, and the number of all units."""
        bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        return bounds if self._mode == "images" else self._counts.before(bounds)

    def _choose_streams(self, streams: int | None, window: int) -> int:
        """Return the number of streams; by default a power of two that divides a batch."""
        if streams is not None:
            return streams
        if not window or self.order == _HELD_ORDER or self.units < _FEW:
            return 1
        # Of fewer shards than streams none could be shuffled with another.
        return math.gcd(self._per_step, 1 << (min(window, _STREAMS).bit_length() - 1))

    def _choose_captions(self, image_indices: Indices, passes: Indices) -> Indices:
        """Return (N, k) caption indices of each image for this pass."""
        counts = self._counts.of(image_indices)
        order = self._caption_orders(image_indices, counts)
        k = self.captions_per_image
        entries = passes[:, None] * k + np.arange(k)
        return np.take_along_axis(order, entries % counts[:, None], axis=1)

    def _caption_orders(self, image_indices: Indices, counts: Indices) -> Indices:
        """Return (N, most) each image's own order of its captions, missing ones at the end."""
        most = int(counts.max())
        pairs = np.stack([image_indices, np.zeros_like(image_indices)], axis=1)
        keys = rng.uniform(self.seed, 0, pairs, rng.Stream.CAPTION_ORDER, most)
        keys[np.arange(most) >= counts[:, None]] = np.inf
        return np.argsort(keys, axis=1, kind="stable")

    def _mix(self, sizes: Sequence[int], weights: Sequence[float], window: int) -> list[Share]:
        if sum(sizes) != len(self._counts) or len(sizes) != len(weights):
            raise ValueError("weights need the number of images of every dataset")
        if window:
            raise PlanError(
                f"`shuffle_window` is {window}, which knows no weights; set "
                "`shuffle_window`=0, or leave `weights` out"
            )
        bounds = self._bounds(sizes)
        for number, units in enumerate(np.diff(bounds)):
            if not units:
                raise PlanError(
                    f"`weights` gives {weights[number]} to dataset {number + 1}, which has no "
                    "pairs to train on; take it out"
                )
        return divide(bounds, weights)

    def _check_streams(self, sizes: Sequence[int]) -> None:
        if self._per_step % self.streams:
            lower = next(n for n in range(self.streams, 0, -1) if self._per_step % n == 0)
            raise PlanError(
                f"`streams` is {self.streams}, and a batch of {self._per_step} "
                f"{'images' if self._mode == 'images' else 'pairs'} does not divide into as many; "
                f"set `streams`={lower}, or another `global_batch`"
            )
        if self.streams > min(sizes):
            raise PlanError(
                f"`streams` is {self.streams}, and the smallest dataset has {min(sizes)} "
                f"{self._mode}; set at most {min(sizes)}"
            )

    def _sizes(self, shard_sizes: Sequence[int] | None, shuffle_window: int) -> Sequence[int]:
        """Return the images of each shard, which is all of them where none is given."""
        if shard_sizes is None:
            if shuffle_window:
                raise ValueError("shuffle_window needs the number of images of every shard")
            return [len(self._counts)]
        if sum(shard_sizes) != len(self._counts):
            raise ValueError("the shards must hold all images, and no more")
        return shard_sizes

    def _check(self) -> None:
        batch, k, pairs = self.global_batch, self.captions_per_image, self._counts.pairs
        if not pairs:
            raise PlanError(
                "`captions_per_sample` holds 0 pairs to train on; choose a split with captions"
            )
        if self._mode == "images":
            if batch % k:
                raise PlanError(
                    f"`global_batch` is {batch}, not divisible by {k} captions per image; "
                    f"set {max(batch // k, 1) * k}"
                )
            few, first, least = self._counts.fewer(k)
            if few:
                remedy = f"at most {least}, or " if least else ""
                raise PlanError(
                    f"`captions_per_image` is {k}, but {few} of {len(self._counts)} "
                    f"images have fewer captions (the first, image {first}, has "
                    f"{self._counts.of(np.array([first]))[0]}); set {remedy}`mode`=pairs with 1"
                )
        available = self.units * k
        if not self._wraps and available < batch:
            raise PlanError(
                f"`global_batch` is {batch}, but an epoch has {available} pairs, so it would "
                f"have no step; set at most {available}, or `last_batch`=wrap"
            )
