from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.retrieval.protocols.correlation import bootstrapped_spearman, spearman


def by_definition(first, second):
    """Pearson's correlation of mid-ranks, each rank counted out."""
    ranks = []
    for values in (first, second):
        values = np.asarray(values)
        ranks.append([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
    return np.corrcoef(ranks[0], ranks[1])[0, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=2, max_size=30))
def test_spearman_with_ties(pairs):
    first, second = np.array(pairs, dtype=float).T
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(by_definition(first, second), abs=1e-12)


def test_spearman_of_a_published_example():
    # IQ against hours of television, Wikipedia's example: -29/165.
    iq = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110.0])
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17.0])
    assert spearman(iq, hours) == pytest.approx(-29 / 165)


def test_each_estimate_takes_one_pair_of_half_of_the_queries(monkeypatch):
    queries = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5])
    ratings = np.arange(len(queries), dtype=float)
    seen = []
    monkeypatch.setattr(
        "vse_scale.retrieval.protocols.correlation.spearman",
        lambda first, second: seen.append(first.astype(int)) or 0.5,
    )
    found = bootstrapped_spearman(queries, ratings, -ratings, estimates=500)
    assert (found.mean, found.std, found.queries) == (50.0, 0.0, 10)
    assert {len(rows) for rows in seen} == {5}
    assert all(len(set(queries[rows])) == 5 for rows in seen)
    assert set(np.concatenate(seen)) == set(range(len(queries)))  # every pair has its chance


def test_mean_and_spread():
    rng = np.random.default_rng(0)
    queries = np.repeat(np.arange(400), 3)
    ratings = rng.integers(0, 6, 1200).astype(float)
    perfect = bootstrapped_spearman(queries, ratings, ratings * 0.1, estimates=20)
    assert perfect.mean == pytest.approx(100)
    assert bootstrapped_spearman(queries, ratings, np.zeros(1200), estimates=20).mean == 0
    noisy = bootstrapped_spearman(queries, ratings, ratings + rng.normal(0, 2, 1200))
    whole = 100 * spearman(ratings, ratings + rng.normal(0, 2, 1200))
    assert noisy.mean == pytest.approx(whole, abs=5)
    assert 0 < noisy.std < 10
    again = bootstrapped_spearman(queries, ratings, ratings + 0.0, estimates=20, seed=1)
    assert again.mean == pytest.approx(100)
