"""The computed permutation is one, and looks like a random one; each test can fail.

Loaders whose order is an array pay for it at every start, or hold it on every rank:
mosaicml/streaming#792, mosaicml/streaming#771, mlfoundations/open_clip#547.
"""

import numpy as np
import pytest

from vse_scale.data import permutation
from vse_scale.data.permutation import Network, Permutation, Purpose

SIZES = [*range(1, 130), 1000, 1023, 1024, 1025, 5000, 65_537]


def keys(seed):
    return np.random.Philox(seed).random_raw(12)


def network(size, seed):
    return Network(size, keys(seed))


def chi_square(values, bins, low, high):
    """Return the statistic in standard deviations above its expectation."""
    counts, _ = np.histogram(values, bins=bins, range=(low, high))
    expected = len(values) / bins
    return ((counts - expected) ** 2 / expected).sum() / np.sqrt(2 * (bins - 1)) - np.sqrt(
        (bins - 1) / 2
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_a_bijection_with_its_inverse(seed):
    for size in SIZES:
        everything = np.arange(size)
        entries = network(size, seed).encrypt(everything)
        np.testing.assert_array_equal(np.sort(entries), everything)
        np.testing.assert_array_equal(network(size, seed).decrypt(entries), everything)
        held = Permutation(size, Purpose.UNITS, seed=seed, passed=0)
        np.testing.assert_array_equal(np.sort(held[everything]), everything)


def test_a_million_entries_come_once_each():
    size = 1_000_000
    order = Permutation(size, Purpose.UNITS, seed=7, passed=3)
    entries = order[np.arange(size)]
    assert entries.min() == 0
    assert entries.max() == size - 1
    assert (np.bincount(entries, minlength=size) == 1).all()


def test_entries_of_a_billion_come_back_by_the_inverse():
    size = 1_280_000_000
    one = network(size, 5)
    positions = np.random.default_rng(0).integers(0, size, 200_000)
    entries = one.encrypt(positions)
    assert entries.min() >= 0
    assert entries.max() < size
    np.testing.assert_array_equal(one.decrypt(entries), positions)
    assert len(np.unique(entries)) == len(np.unique(positions))


def deviations(size):
    """Return how far marginals, differences, neighbours and epochs are from independence."""
    everything = np.arange(size)
    first, second = network(size, 11).encrypt(everything), network(size, 12).encrypt(everything)
    starts = np.array([network(size, seed).encrypt(everything[:1])[0] for seed in range(1500)])
    apart = (first[1:] - first[:-1]) % size
    both = first * 16 // size * 16 + second * 16 // size  # cell of the entries of two epochs
    pairs = first[:-1] * 16 // size * 16 + first[1:] * 16 // size
    early = first[: size // 10]
    low_bits = first[: size // 2] % 64
    return [
        chi_square(starts, 50, 0, size),
        chi_square(apart, 100, 0, size),
        chi_square(both, 256, 0, 256),
        chi_square(pairs, 256, 0, 256),
        chi_square(early, 100, 0, size),
        chi_square(low_bits, 64, 0, 64),
    ]


def test_marginals_differences_neighbours_and_epochs_are_those_of_chance():
    assert max(deviations(50_003)) < 4


def test_too_few_rounds_are_noticed(monkeypatch):
    monkeypatch.setattr(permutation, "_ROUNDS", 2)
    assert max(deviations(20_000)) > 10


def test_of_two_epochs_about_one_entry_stays_in_its_place():
    everything = np.arange(30_000)
    fixed = [
        (Permutation(30_000, Purpose.UNITS, seed=3, passed=epoch)[everything] == everything).sum()
        for epoch in range(60)
    ]
    assert 0.6 < np.mean(fixed) < 1.4  # Poisson of mean 1


def test_uses_passes_seeds_datasets_and_indices_differ():
    options = {"seed": 1, "passed": 2, "dataset": 3, "index": 4}
    for size in (100, 20_000):  # held, and computed
        orders = [Permutation(size, Purpose.UNITS, **options)]
        orders += [Permutation(size, Purpose.UNITS, **{**options, key: 9}) for key in options]
        orders += [Permutation(size, use, **options) for use in (Purpose.SHARDS, Purpose.DATASETS)]
        assert len({order[np.arange(size)].tobytes() for order in orders}) == len(orders)


def test_its_entries_are_pinned():
    """A run resumes only while they stay what they are."""
    few = Permutation(7, Purpose.UNITS, seed=1, passed=0)
    many = Permutation(10**9, Purpose.UNITS, seed=1, passed=0)
    assert few[np.arange(7)].tolist() == PINNED_FEW
    assert many[np.array([0, 1, 2, 10**9 - 1])].tolist() == PINNED_MANY


PINNED_FEW = [6, 5, 1, 3, 0, 4, 2]
PINNED_MANY = [28037201, 252428564, 81869218, 697819824]
