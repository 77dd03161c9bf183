"""The metrics of retrieval and its two directions, one table each.

All code that prints, records, draws or exports figures walks these tables, so a new metric is one
row of `METRICS` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Ranks: TypeAlias = NDArray[np.int64]
"""(Q,) the 1-based rank of each query's best right answer."""


@dataclass(frozen=True)
class Metric:
    """A figure of one direction.

    Attributes:
        name: its key in records and in JSON.
        label: its name in tables and pages.
        unit: of its values; a percentage lies in [0, 100].
        better: the direction in which a model improves.
        compute: its value from the `Ranks` of all queries.
        k: of a recall at K, else None.
        in_rsum: it is a term of RSUM.
    """

    name: str
    label: str
    unit: Literal["percent", "rank"]
    better: Literal["higher", "lower"]
    compute: Callable[[Ranks], float]
    k: int | None = None
    in_rsum: bool = False

    @property
    def column(self) -> str:
        """The label in a column of numbers, where room is short."""
        return self.label.removesuffix(" rank").lower() if self.unit == "rank" else self.label

    def text(self, figures: Mapping[str, Any]) -> str:
        """Return its value among a direction's ``figures``; a dash where an old record lacks it."""
        value = figures.get(self.name)
        return "–" if value is None else f"{value:.1f}"


@dataclass(frozen=True)
class Direction:
    """Queries of one kind, answered by candidates of a kind.

    Attributes:
        key: its key in records and in JSON.
        label: its name in tables and pages.
        short: its name where room is short.
        query: the side of the model that embeds the queries, "image" or "text".
        answer: the side that embeds the candidates.
        queries: the queries in a sentence.
        answers: the candidates in a sentence.
    """

    key: str
    label: str
    short: str
    query: Literal["image", "text"]
    answer: Literal["image", "text"]
    queries: str
    answers: str


def _recall(ranks: Ranks, k: int) -> float:
    return float(100.0 * np.count_nonzero(ranks <= k) / len(ranks))


def _median(ranks: Ranks) -> float:
    # As the published code has it: of an even number of ranks, the mean of the middle two, floored.
    return float(np.floor(np.median(ranks)))


def _recall_at(k: int, *, in_rsum: bool) -> Metric:
    compute = partial(_recall, k=k)
    return Metric(f"r{k}", f"R@{k}", "percent", "higher", compute, k=k, in_rsum=in_rsum)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _recall_at(1, in_rsum=True),
        _recall_at(5, in_rsum=True),
        _recall_at(10, in_rsum=True),
        Metric("median_rank", "Median rank", "rank", "lower", _median),
        Metric("mean_rank", "Mean rank", "rank", "lower", lambda ranks: float(ranks.mean())),
    )
}
HEADLINE = METRICS["r1"]
"""The one figure that a summary of a line shows."""

DIRECTIONS: dict[str, Direction] = {
    direction.key: direction
    for direction in (
        Direction("i2t", "image to text", "i→t", "image", "text", "pictures", "captions"),
        Direction("t2i", "text to image", "t→i", "text", "image", "captions", "pictures"),
    )
}


def percentages() -> list[Metric]:
    """Return the metrics in percent, which papers and charts compare."""
    return [metric for metric in METRICS.values() if metric.unit == "percent"]


class DirectionRecalls(SimpleNamespace):
    """The figures of one direction, an attribute for each row of `METRICS`: ``way.r1``.

    Two are equal where all figures are; `vars` gives them by name.
    """

    def __init__(self, *figures: float, **named: float) -> None:
        """Take the figures by name, or in the order of `METRICS`."""
        if len(figures) > len(METRICS):
            raise TypeError(f"{len(figures)} figures were given; there are {len(METRICS)} metrics")
        super().__init__(**dict(zip(METRICS, figures, strict=False)), **named)

    @classmethod
    def from_ranks(cls, ranks: Tensor) -> DirectionRecalls:
        """Summarise 1-based ``ranks`` (Q,) int64, Q >= 1."""
        values = ranks.cpu().numpy()
        return cls(**{name: metric.compute(values) for name, metric in METRICS.items()})

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return dict(vars(self))


def rsum(ways: Sequence[DirectionRecalls]) -> float:
    """Return the sum of the metrics that are part of RSUM, over ``ways``."""
    terms = [metric.name for metric in METRICS.values() if metric.in_rsum]
    # Added from left to right: Python 3.12's `sum` of floats would round otherwise.
    return float(sum(reduce(add, (vars(way)[name] for name in terms)) for way in ways))


@dataclass(frozen=True)
class Recalls:
    """Image-to-text and text-to-image figures, and ``rsum``, the sum of six recalls."""

    i2t: DirectionRecalls
    t2i: DirectionRecalls

    @property
    def ways(self) -> dict[str, DirectionRecalls]:
        """The figures by the keys of `DIRECTIONS`."""
        return {key: getattr(self, key) for key in DIRECTIONS}

    @property
    def rsum(self) -> float:
        """R@1 + R@5 + R@10 in both directions, at most 600."""
        return rsum(list(self.ways.values()))

    def to_dict(self) -> dict[str, object]:
        """Return ``{"i2t": {...}, "t2i": {...}, "rsum": ...}``, ready for JSON."""
        return {**{key: way.to_dict() for key, way in self.ways.items()}, "rsum": self.rsum}

    @staticmethod
    def mean(recalls: Sequence[Recalls]) -> Recalls:
        """Average every figure over ``recalls``, as the five COCO 1K folds are averaged."""

        def average(ways: list[DirectionRecalls]) -> DirectionRecalls:
            names = vars(ways[0])
            return DirectionRecalls(
                **{name: float(np.mean([vars(way)[name] for way in ways])) for name in names}
            )

        return Recalls(**{key: average([r.ways[key] for r in recalls]) for key in DIRECTIONS})
