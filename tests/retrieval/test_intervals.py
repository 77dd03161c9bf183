"""Confidence intervals of recalls, against the normal approximation and a plain bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vse_scale.retrieval.intervals import difference_intervals, intervals, known_interval
from vse_scale.retrieval.ranks import QueryRanks


def made(images: int, captions: int, *, alike: bool) -> tuple[QueryRanks, np.ndarray]:
    """Ranks of ``images``, of which 40 % are found first; ``alike`` ones of an image's captions."""
    random = np.random.default_rng(1)
    first = random.random(images) < 0.4
    of_images = np.where(first, 1, 20)
    each = np.repeat(of_images, captions)
    if not alike:
        each = np.where(random.random(images * captions) < 0.4, 1, 20)
    ranks = QueryRanks(torch.arange(images), torch.tensor(of_images), torch.tensor(each))
    return ranks, np.repeat(np.arange(images), captions)


def half_width(found: tuple[float, float]) -> float:
    return (found[1] - found[0]) / 2


def test_the_width_is_that_of_a_share_of_independent_queries():
    ranks, of = made(2000, 5, alike=False)
    found = intervals(ranks, of)
    for way, count in (("i2t", 2000), ("t2i", 10_000)):
        share = ranks.recalls().ways[way].r1 / 100
        expected = 196.0 * math.sqrt(share * (1 - share) / count)
        assert half_width(found[way]["r1"]) == pytest.approx(expected, rel=0.12)
        assert sum(found[way]["r1"]) / 2 == pytest.approx(100 * share, abs=expected / 3)
        assert found[way]["r1"] == found[way]["r10"]  # no rank lies between


def test_captions_of_one_image_are_drawn_together():
    """Five captions that are found or missed together tell no more than one."""
    together, of = made(2000, 5, alike=True)
    apart, _ = made(2000, 5, alike=False)
    widths = [half_width(intervals(ranks, of)["t2i"]["r1"]) for ranks in (together, apart)]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(5), rel=0.15)


def test_it_is_a_bootstrap_of_the_sum_and_the_same_each_time():
    ranks, of = made(300, 2, alike=True)
    found = intervals(ranks, of)
    assert found == intervals(ranks, of)
    random, sums = np.random.default_rng(7), []
    images, words = ranks.i2t.numpy(), ranks.t2i.numpy().reshape(300, 2)
    for _ in range(1000):
        drawn = random.integers(0, 300, 300)
        sums.append(
            sum(
                100 * np.mean(side <= k)
                for side in (images[drawn], words[drawn].ravel())
                for k in (1, 5, 10)
            )
        )
    expected = np.percentile(sums, [2.5, 97.5])
    assert np.abs(np.array(found["rsum"]) - expected).max() <= 0.15 * np.ptp(expected)


def test_a_perfect_model_and_an_image_without_captions():
    ranks = QueryRanks(torch.tensor([0, 2]), torch.tensor([1, 1]), torch.tensor([1, 1, 1]))
    found = intervals(ranks, np.array([0, 2, 2]))
    assert found["rsum"] == (600.0, 600.0)
    assert found["i2t"] == {"r1": (100, 100), "r5": (100, 100), "r10": (100, 100)}


def test_of_a_difference_it_is_a_bootstrap_of_pairs():
    """Narrower than two models' intervals say, and one way the negative of the other."""
    before, of = made(400, 2, alike=True)
    better = np.where(np.random.default_rng(2).random(400) < 0.1, 1, before.i2t.numpy())
    after = QueryRanks(
        before.image_queries, torch.tensor(better), torch.tensor(np.repeat(better, 2))
    )
    found = difference_intervals(before, after, of)
    gained = 100.0 * ((better <= 1).astype(float) - (before.i2t.numpy() <= 1))
    drawn = np.random.default_rng(3).integers(0, 400, (4000, 400))
    expected = np.percentile(gained[drawn].mean(axis=1), [2.5, 97.5])
    for way in ("i2t", "t2i"):
        assert found[way]["r1"] == pytest.approx(tuple(expected), abs=0.6)
    assert found["rsum"] == pytest.approx([6 * end for end in found["i2t"]["r1"]])
    assert half_width(found["i2t"]["r1"]) < half_width(intervals(after, of)["i2t"]["r1"]) / 1.5
    back = difference_intervals(after, before, of)["rsum"]
    assert back == pytest.approx([-found["rsum"][1], -found["rsum"][0]])
    assert difference_intervals(after, after, of)["rsum"] == (0.0, 0.0)


@pytest.mark.parametrize(
    "stored",
    [{}, {"rsum": 3}, {"rsum": ["a", "b"]}, {"rsum": [1, 2, 3]}, {"rsum": [10**400, 1]}],
    ids=["none", "a number", "texts", "three", "of many digits"],
)
def test_what_is_no_interval_is_none(stored):
    assert known_interval(stored, "rsum") is None
    assert known_interval({"i2t": {"r1": [1, 2]}}, "i2t", "r1") == (1.0, 2.0)
