"""Confidence intervals of recalls, by the bootstrap over a split's images.

Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979. An image is drawn with all of its
captions: these are not independent, and drawn one by one they would make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vse_scale.retrieval.metrics import DIRECTIONS, METRICS
from vse_scale.retrieval.ranks import QueryRanks

Interval: TypeAlias = tuple[float, float]

DRAWS = 1000
LEVEL = 95  # percent of the draws lie within
_SEED = 0
_RECALLS = {name: metric.k for name, metric in METRICS.items() if metric.k is not None}


def intervals(ranks: QueryRanks, caption_to_image: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Return the interval of each recall and of RSUM, in percent; the same input, the same ones.

    Args:
        ranks: of all queries.
        caption_to_image: (C,) integers, each caption's image.

    Returns:
        ``{"i2t": {"r1": (low, high), ...}, "t2i": {...}, "rsum": (low, high)}``.
    """
    (drawn,) = _draws([ranks], caption_to_image)
    return _middles(drawn)


def difference_intervals(
    first: QueryRanks, second: QueryRanks, caption_to_image: NDArray[np.integer[Any]]
) -> dict[str, Any]:
    """Return the intervals of what ``second`` has more than ``first``, as `intervals` does.

    Both count the same images in each draw, so what makes a query hard for both cancels out: the
    intervals are narrower than those of the two recalls suggest.

    Args:
        first: of all queries, by one model.
        second: of the same queries, by another.
        caption_to_image: (C,) integers, each caption's image.
    """
    of_first, of_second = _draws([first, second], caption_to_image)
    return _middles({term: of_second[term] - of_first[term] for term in of_first})


def _draws(
    models: Sequence[QueryRanks], caption_to_image: NDArray[np.integer[Any]]
) -> list[dict[tuple[str, str], NDArray[np.float64]]]:
    """Return each model's recalls (DRAWS,) by way and name; all models have the same draws."""
    groups, of_captions = np.unique(caption_to_image, return_inverse=True)
    tables: list[NDArray[np.float64]] = []
    for ranks in models:
        of_images = np.searchsorted(groups, ranks.image_queries.numpy())
        tables += [
            _table(ranks.i2t.numpy(), of_images, len(groups)),
            _table(ranks.t2i.numpy(), of_captions, len(groups)),
        ]
    table = np.concatenate(tables, axis=1)
    random = np.random.default_rng(_SEED)
    sums = np.empty((DRAWS, table.shape[1]))
    for draw in range(DRAWS):  # one at a time: a large split's draws would not fit together
        chosen = random.integers(0, len(groups), len(groups))
        sums[draw] = np.bincount(chosen, minlength=len(groups)) @ table
    found = []
    for of_model in np.split(sums, len(models), axis=1):
        drawn: dict[tuple[str, str], NDArray[np.float64]] = {}
        for key, part in zip(("i2t", "t2i"), np.split(of_model, 2, axis=1), strict=True):
            recalls = 100.0 * part[:, 1:] / part[:, :1]
            drawn |= {(key, name): recalls[:, place] for place, name in enumerate(_RECALLS)}
        found.append(drawn)
    return found


def _middles(drawn: Mapping[tuple[str, str], NDArray[np.float64]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        way: {name: _middle(drawn[way, name]) for name in _RECALLS} for way in ("i2t", "t2i")
    }
    terms = [(way, name) for way in DIRECTIONS for name in _RECALLS if METRICS[name].in_rsum]
    return {**found, "rsum": _middle(np.sum([drawn[term] for term in terms], axis=0))}


def known_interval(intervals: Mapping[str, Any], *keys: str) -> Interval | None:
    """Return one of recorded ``intervals``; None where a run recorded none, or something else."""
    found: Any = intervals
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    numbers = isinstance(found, list | tuple) and all(isinstance(v, int | float) for v in found)
    try:
        return (float(found[0]), float(found[1])) if numbers and len(found) == 2 else None
    except OverflowError:  # of an integer of many digits
        return None


def _table(ranks: NDArray[np.int64], groups: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Return by image (I, 1 + recalls) the number of queries, and of those each recall counts."""
    columns = [None, *(ranks <= k for k in _RECALLS.values())]
    return np.stack([np.bincount(groups, hits, count) for hits in columns], axis=1).astype(float)


def _middle(values: NDArray[np.float64]) -> Interval:
    outside = (100 - LEVEL) / 2
    low, high = np.percentile(values, [outside, 100 - outside])
    return round(float(low), 4), round(float(high), 4)
