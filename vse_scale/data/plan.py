"""The order of training: the (image, caption) pairs in the batch of (epoch, step).

Everything here is a pure function of the captions per image, the seed and the global batch. The
number of ranks only decides where a batch is cut, so the position (epoch, step) is all the state
that a run needs to resume, on any number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vse_scale.data import rng
from vse_scale.data.shares import Indices, Share, divide, epoch_generator
from vse_scale.data.windows import Windows
from vse_scale.errors import ConfigError

__all__ = ["Indices", "Plan", "PlanError", "PlannedBatch"]


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
            mode: unit of an epoch, see the class.
            captions_per_image: k of mode ``images``; 1 in mode ``pairs``.
            last_batch: omit the pairs that fill no batch, or wrap around to the start of the epoch
                and mark repeated pairs as not valid.
            shard_sizes: images of each shard, in order; required with ``shuffle_window``. None:
                one shard.
            shuffle_window: number of shards that are shuffled together; 0 for all.
            dataset_sizes: images of each dataset, in order, if several are mixed.
            weights: share of each dataset in an epoch; None: proportional to its size.

        Raises:
            PlanError: an epoch would have no step, or the batch does not hold whole images, or
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
        if shard_sizes is None:
            shard_sizes = [len(self._captions)]
            if shuffle_window:
                raise ValueError("shuffle_window needs the number of images of every shard")
        if sum(shard_sizes) != len(self._captions):
            raise ValueError("the shards must hold all images, and no more")
        self._windows = Windows(self._bounds(shard_sizes), shuffle_window, seed)
        self._mixed: list[Share] = []
        if weights is not None:
            self._mix(dataset_sizes or (), weights, shuffle_window)
        self._cached: tuple[int, Indices, Indices] | None = None

    @property
    def units(self) -> int:
        """Length of an epoch: the split's pairs, or in mode ``images`` its images."""
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
        order, passes = self._order(epoch)
        units, passes = order[positions % self.units], passes[positions % self.units]
        valid = np.repeat(positions < self.units, k)
        if self._mode == "images":
            image_indices = np.repeat(units, k)
            captions = self._choose_captions(units, passes).ravel()
            passes = np.repeat(passes, k)
        else:
            # The last image whose first pair is not beyond the unit: searching from the right
            # skips images without captions, which start at the same pair as the image after them.
            image_indices = np.searchsorted(self._first_pair, units, side="right") - 1
            captions = units - self._first_pair[image_indices]
        return PlannedBatch(np.stack([image_indices, captions], axis=1), valid, passes)

    def part(self, epoch: int, step: int, rank: int, ranks: int) -> PlannedBatch:
        """Return the contiguous part of a batch that ``rank`` of ``ranks`` trains on.

        Raises:
            PlanError: the batch does not divide into parts of whole images.
        """
        size, rest = divmod(self.global_batch, ranks)
        if rest or size % self.captions_per_image:
            raise PlanError(
                f"`global_batch` is {self.global_batch}, not divisible by {ranks} ranks x "
                f"{self.captions_per_image} captions per image; set a multiple of "
                f"{ranks * self.captions_per_image}"
            )
        whole = self.batch(epoch, step)
        rows = slice(rank * size, (rank + 1) * size)
        return PlannedBatch(whole.pairs[rows], whole.valid[rows], whole.passes[rows])

    def following(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the position after (epoch, step)."""
        return (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def shards(self, epoch: int, step: int, ahead: int = 0) -> tuple[list[int], list[int]]:
        """Return the shards that a batch may read from, and the next ``ahead`` after them.

        With ``shuffle_window`` these are all shards of the one or two windows that contain the
        batch; without, they are all shards of the split.
        """
        per_step = self.global_batch // self.captions_per_image
        first, last = step * per_step, (step + 1) * per_step - 1
        used = self.steps_per_epoch * per_step
        return self._windows.read(epoch, first, last, used=used, ahead=ahead)

    def shards_within(self, steps: int) -> int:
        """Return an upper bound of the shards that ``steps`` consecutive batches read from."""
        # A turn of the epoch may drop less than a batch, hence one step more.
        return self._windows.within((steps + 1) * (self.global_batch // self.captions_per_image))

    def _bounds(self, sizes: Sequence[int]) -> Indices:
        """Return the first unit of each run of ``sizes`` images, and the number of all units."""
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return bounds if self._mode == "images" else self._first_pair[bounds]

    def _order(self, epoch: int) -> tuple[Indices, Indices]:
        """Return the order of the epoch and the pass of each unit, both (units,).

        Caches the most recent epoch, since a permutation of millions costs more than a step.
        """
        if self._cached is None or self._cached[0] != epoch:
            if self._mixed:
                units, passes = self._weighted(epoch)
            else:
                units = self._windows.units(epoch)
                passes = np.full_like(units, epoch)
            self._cached = (epoch, units, passes)
        return self._cached[1:]

    def _weighted(self, epoch: int) -> tuple[Indices, Indices]:
        parts = [share.take(self.seed, epoch) for share in self._mixed]
        shuffled = epoch_generator(self.seed, epoch).permutation(self.units)
        units, passes = (np.concatenate(column)[shuffled] for column in zip(*parts, strict=True))
        return units, passes

    def _choose_captions(self, image_indices: Indices, passes: Indices) -> Indices:
        """Return (N, k) caption indices of each image for this pass."""
        counts = self._captions[image_indices]
        order = self._caption_orders(image_indices, int(counts.max()))
        k = self.captions_per_image
        entries = passes[:, None] * k + np.arange(k)
        return np.take_along_axis(order, entries % counts[:, None], axis=1)

    def _caption_orders(self, image_indices: Indices, most: int) -> Indices:
        """Return (N, most) each image's own order of its captions, missing ones at the end."""
        pairs = np.stack([image_indices, np.zeros_like(image_indices)], axis=1)
        keys = rng.uniform(self.seed, 0, pairs, rng.Stream.CAPTION_ORDER, most)
        keys[np.arange(most) >= self._captions[image_indices][:, None]] = np.inf
        return np.argsort(keys, axis=1, kind="stable")

    def _mix(self, sizes: Sequence[int], weights: Sequence[float], window: int) -> None:
        if sum(sizes) != len(self._captions) or len(sizes) != len(weights):
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
        self._mixed = divide(bounds, weights)

    def _check(self, last_batch: str) -> None:
        batch, k, pairs = self.global_batch, self.captions_per_image, int(self._first_pair[-1])
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
            few = np.flatnonzero(self._captions < k)
            if len(few):
                least = int(self._captions.min())
                remedy = f"at most {least}, or " if least else ""
                raise PlanError(
                    f"`captions_per_image` is {k}, but {len(few)} of {len(self._captions)} "
                    f"images have fewer captions (the first, image {few[0]}, has "
                    f"{self._captions[few[0]]}); set {remedy}`mode`=pairs with 1"
                )
        available = self.units * k
        if last_batch == "drop" and available < batch:
            raise PlanError(
                f"`global_batch` is {batch}, but an epoch has {available} pairs, so it would "
                f"have no step; set at most {available}, or `last_batch`=wrap"
            )
