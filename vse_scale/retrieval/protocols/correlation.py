"""Agreement of similarities with people's ratings: the correlation tasks of Crisscrossed Captions.

Parekh et al., EACL 2021, section 4: ratings are dense, so many of them share an item. Each estimate
therefore takes half of the queries, and one rated partner of each, and is Spearman's correlation
between rating and similarity; the result is the mean of 1,000 such estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CORRELATION_TASKS = {
    "sits": "image-text (SITS)",
    "sis": "image-image (SIS)",
    "sts": "text-text (STS)",
}
_ESTIMATES = 1000
_CHUNK = 65536  # pairs whose similarities are computed at once


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation in percent: mean and standard deviation of the estimates."""

    mean: float
    std: float
    queries: int

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rated:
    """Pairs with their ratings: rows of queries (n,), of items (n,) int64, ratings (n,) float64."""

    queries: Tensor
    items: Tensor
    ratings: NDArray[np.float64]


def correlations(
    rated: Mapping[str, Rated], sides: Mapping[str, tuple[Tensor, Tensor]], *, seed: int = 0
) -> dict[str, Correlation]:
    """Correlate similarities with ratings.

    Args:
        rated: the pairs of each task. The query is the first column of Google's file: the caption
            in SITS.
        sides: for each task the embeddings of queries and items, (Q, D) and (N, D).
        seed: of the samples.
    """
    result = {}
    for task, pairs in rated.items():
        queries, items = sides[task]
        similarity = np.concatenate(
            [
                (queries[pairs.queries[part]] * items[pairs.items[part]]).sum(1).cpu().numpy()
                for part in torch.split(torch.arange(len(pairs.items)), _CHUNK)
            ]
        )
        result[task] = bootstrapped_spearman(
            pairs.queries.numpy(), pairs.ratings, similarity, seed=seed
        )
    return result


def bootstrapped_spearman(
    queries: NDArray[np.int64],
    ratings: NDArray[np.float64],
    similarities: NDArray[np.floating],
    *,
    estimates: int = _ESTIMATES,
    seed: int = 0,
) -> Correlation:
    """Average Spearman's correlation over samples of half of the queries, one pair of each.

    All arrays are (n,), a row per rated pair. Without any variation in the similarities, as of a
    collapsed model, the correlation is 0.
    """
    order = np.argsort(queries, kind="stable")
    _, starts, counts = np.unique(queries[order], return_index=True, return_counts=True)
    half = max(len(starts) // 2, 1)
    rng = np.random.default_rng(seed)
    found = np.empty(estimates)
    for estimate in range(estimates):
        chosen = rng.permutation(len(starts))[:half]
        pairs = order[starts[chosen] + rng.integers(0, counts[chosen])]
        found[estimate] = spearman(ratings[pairs], similarities[pairs])
    return Correlation(100 * float(found.mean()), 100 * float(found.std()), len(starts))


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return Pearson's correlation of the ranks of (n,) values; equal values share a mean rank."""
    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        mean_rank = np.cumsum(counts) - (counts - 1) / 2
        ranks.append(mean_rank[inverse] - mean_rank[inverse].mean())
    scale = np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale > 0 else 0.0
