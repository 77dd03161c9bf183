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

from vse_scale.data import draws
from vse_scale.errors import ConfigError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlannedBatch:
    """The pairs of one batch, or of one rank's part of it.

    Attributes:
        pairs: (B, 2) int64, image index in the split and caption index within the image.
        valid: (B,) bool, False for pairs that only complete the last batch of an epoch.
    """

    pairs: Indices
    valid: npt.NDArray[np.bool_]


class Plan:
    """The batches of every epoch.

    In mode ``pairs`` an epoch visits each (image, caption) pair once, as published. In mode
    ``images`` it visits each image once with ``captions_per_image`` = k of its captions, which
    stand side by side; epoch e takes entries e * k to e * k + k - 1 of an endless repetition of one
    random order of the image's captions. Hence any n entries in a row, n being the image's number
    of captions, are all of them, and no caption comes twice in an epoch.

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
            shard_sizes: images of each shard, in order; needed with ``shuffle_window``.
            shuffle_window: shards that are shuffled together; 0 for all.

        Raises:
            ConfigError: an epoch would have no step, or the batch does not hold whole images, or
                an image has fewer than ``captions_per_image`` captions.
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
        if shuffle_window:
            if shard_sizes is None or sum(shard_sizes) != len(self._captions):
                raise ValueError("shuffle_window needs the number of images of every shard")
            image_bounds = np.concatenate([[0], np.cumsum(shard_sizes)])
            self._unit_bounds = image_bounds if mode == "images" else self._first_pair[image_bounds]
        self._cached: tuple[int, Indices] | None = None

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
        units = self._order(epoch)[positions % self.units]
        valid = np.repeat(positions < self.units, k)
        if self._mode == "images":
            images, captions = np.repeat(units, k), self._choose_captions(units, epoch).ravel()
        else:
            # The last image whose first pair is not beyond: right of all that start at the pair,
            # so that images without captions are passed over.
            images = np.searchsorted(self._first_pair, units, side="right") - 1
            captions = units - self._first_pair[images]
        return PlannedBatch(np.stack([images, captions], axis=1), valid)

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
        return PlannedBatch(whole.pairs[rows], whole.valid[rows])

    def following(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the position after (epoch, step)."""
        return (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def _order(self, epoch: int) -> Indices:
        """Return (units,) the epoch's permutation; the last one asked for is kept."""
        if self._cached is None or self._cached[0] != epoch:
            generator = np.random.Generator(
                np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
            )
            permute = self._windowed if self._window else self._whole
            self._cached = (epoch, permute(generator))
        return self._cached[1]

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

    def _choose_captions(self, images: Indices, epoch: int) -> Indices:
        """Return (N, k) caption indices of each image for this epoch."""
        counts = self._captions[images]
        order = self._caption_orders(images, int(counts.max()))
        entries = epoch * self.captions_per_image + np.arange(self.captions_per_image)
        return np.take_along_axis(order, entries[None, :] % counts[:, None], axis=1)

    def _caption_orders(self, images: Indices, most: int) -> Indices:
        """Return (N, most) each image's own order of its captions, what it lacks at the end."""
        pairs = np.stack([images, np.zeros_like(images)], axis=1)
        keys = draws.uniform(self.seed, 0, pairs, draws.Stream.CAPTION_ORDER, most)
        keys[np.arange(most) >= self._captions[images][:, None]] = np.inf
        return np.argsort(keys, axis=1, kind="stable")

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
