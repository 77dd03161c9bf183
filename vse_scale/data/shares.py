"""Divide an epoch over several datasets by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """One dataset's share of every epoch.

    The unit is a pair, or in mode ``images`` an image.

    Attributes:
        number: index of the dataset.
        first: first unit of the dataset.
        size: number of its units.
        count: number of units that an epoch takes from it.
    """

    number: int
    first: int
    size: int
    count: int

    def take(self, seed: int, epoch: int) -> tuple[Indices, Indices]:
        """Return the units of ``epoch`` and the pass of each over the dataset, both (count,).

        An epoch continues where the one before it stopped, so a small share takes several epochs to
        pass over the dataset once, and a large one passes over it several times in an epoch.
        """
        entries = epoch * self.count + np.arange(self.count, dtype=np.int64)
        passes, offsets = np.divmod(entries, self.size)
        units = np.empty_like(entries)
        for index in np.unique(passes):
            order = epoch_generator(seed, int(index), 1 + self.number).permutation(self.size)
            chosen = passes == index
            units[chosen] = self.first + order[offsets[chosen]]
        return units, passes


def divide(bounds: Indices, weights: Sequence[float]) -> list[Share]:
    """Divide an epoch of as many units as there are over the datasets, by the largest remainder.

    Args:
        bounds: (datasets + 1,) the first unit of each dataset, and the number of all units.
        weights: of each dataset; their scale does not matter.
    """
    total = int(bounds[-1])
    exact = total * np.asarray(weights, dtype=np.float64) / sum(weights)
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: total - counts.sum()]] += 1
    return [
        Share(number, int(first), int(size), int(count))
        for number, (first, size, count) in enumerate(
            zip(bounds[:-1], np.diff(bounds), counts, strict=True)
        )
    ]


def epoch_generator(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    """Return a generator for (seed, epoch); generators of other streams are independent of it."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
