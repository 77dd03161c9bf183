from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.errors import ModelError
from vse_scale.evaluation import Recalls, recall_at_k
from vse_scale.retrieval.ranks import DirectionRecalls, nearest, query_ranks

FIGURES = ("r1", "r5", "r10", "median_rank", "mean_rank")


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    arrays = np.load(shared / "reference" / "retrieval.npz")
    expected = json.loads((shared / "reference" / "retrieval_expected.json").read_text())
    return arrays["image_embeddings"], arrays["caption_embeddings"], expected


def assert_recalls(recalls: Recalls, expected: dict) -> None:
    for way in ("i2t", "t2i"):
        figures = [getattr(getattr(recalls, way), name) for name in FIGURES]
        assert figures == pytest.approx(expected[way], rel=0, abs=1e-9)


def test_published_recalls_of_the_whole_set(reference):
    images, captions, expected = reference
    recalls = recall_at_k(images, captions, np.arange(1250) // 5)
    assert_recalls(recalls, expected["full"])
    assert recalls.rsum == pytest.approx(expected["full"]["rsum"], rel=0, abs=1e-9)


def test_published_recalls_of_five_folds(reference):
    images, captions, expected = reference
    for fold, figures in enumerate(expected["five_fold"]):
        recalls = recall_at_k(
            images[fold * 50 : (fold + 1) * 50],
            captions[fold * 250 : (fold + 1) * 250],
            np.arange(250) // 5,
        )
        assert_recalls(recalls, figures)


def test_order_of_captions_does_not_matter(reference):
    images, captions, expected = reference
    order = np.random.default_rng(0).permutation(1250)
    assert_recalls(recall_at_k(images, captions[order], order // 5), expected["full"])


def brute_force(images, captions, owners):
    """Ranks by the definition, one query and one comparison at a time."""
    scores = images @ captions.T
    i2t, t2i = {}, []
    for image in sorted(set(owners)):
        own = [c for c, owner in enumerate(owners) if owner == image]
        best = max(scores[image, c] for c in own)
        i2t[image] = 1 + sum(scores[image, c] >= best for c in range(len(owners)) if c not in own)
    for caption, image in enumerate(owners):
        others = [i for i in range(len(images)) if i != image]
        t2i.append(1 + sum(scores[i, caption] >= scores[image, caption] for i in others))
    return i2t, t2i


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_ranks_equal_their_definition_with_ties(data):
    n_images = data.draw(st.integers(1, 9))
    owners = data.draw(st.lists(st.integers(0, n_images - 1), min_size=1, max_size=20))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    # Small integers: exact products in any order of summation, and many ties.
    images = rng.integers(-1, 2, (n_images, 3)).astype(np.float64)
    captions = rng.integers(-1, 2, (len(owners), 3)).astype(np.float64)

    ranks = query_ranks(images, captions, owners)

    i2t, t2i = brute_force(images, captions, owners)
    assert ranks.image_queries.tolist() == list(i2t)
    assert ranks.i2t.tolist() == list(i2t.values())
    assert ranks.t2i.tolist() == t2i


def test_image_without_captions_is_a_candidate_and_no_query():
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    captions = torch.tensor([[0.8, 0.6], [0.0, 1.0]])  # of images 0 and 2
    ranks = query_ranks(images, captions, [0, 2])
    assert ranks.image_queries.tolist() == [0, 2]
    assert ranks.t2i.tolist() == [2, 1]
    assert recall_at_k(images, captions, [0, 2]).t2i.r1 == 50.0


def test_collapsed_model_ranks_last():
    images, captions = torch.full((20, 4), 0.5), torch.full((40, 4), 0.5)
    ranks = query_ranks(images, captions, torch.arange(40) // 2)
    assert ranks.i2t.tolist() == [39] * 20  # 38 captions of others
    assert ranks.t2i.tolist() == [20] * 40


def test_results_are_json_of_plain_numbers(reference):
    images, captions, _ = reference
    results = json.loads(json.dumps(recall_at_k(images, captions, np.arange(1250) // 5).to_dict()))
    assert set(results) == {"i2t", "t2i", "rsum"}
    assert tuple(results["i2t"]) == tuple(results["t2i"]) == FIGURES


def test_median_of_an_even_number_is_rounded_down():
    assert DirectionRecalls.from_ranks(torch.tensor([1, 2])).median_rank == 1.0
    assert DirectionRecalls.from_ranks(torch.tensor([1, 2, 7])).median_rank == 2.0


def test_mean_of_folds():
    folds = [
        Recalls(DirectionRecalls(10, 20, 30, 4, 5), DirectionRecalls(1, 2, 3, 8, 9)),
        Recalls(DirectionRecalls(20, 40, 60, 5, 7), DirectionRecalls(3, 4, 5, 9, 9)),
    ]
    mean = Recalls.mean(folds)
    assert mean.i2t == DirectionRecalls(15, 30, 45, 4.5, 6)
    assert mean.rsum == pytest.approx((66 + 132) / 2)


@pytest.mark.parametrize(
    ("captions", "owners", "message"),
    [
        (np.ones((3, 5)), [0, 0, 0], r"\(2, 4\) and \(3, 5\)"),
        (np.ones((0, 4)), [], "0 embeddings"),
        (np.ones((3, 4)), [0, 1], r"shape \(2,\)"),
        (np.ones((3, 4)), [0.0, 1.0, 1.0], "float"),
        (np.ones((3, 4)), [0, 1, 2], "spans 0 to 2, but there are 2 images"),
        (np.ones((3, 4)), [-1, 1, 1], "spans -1 to 1"),
    ],
)
def test_arguments_that_do_not_fit(captions, owners, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(np.ones((2, 4)), captions, owners)


def test_an_embedding_that_is_not_finite_is_no_hit():
    captions = torch.ones(3, 4)
    captions[1, 2] = float("nan")
    with pytest.raises(ModelError, match="1 of 3 embeddings are not finite, the first is number 1"):
        recall_at_k(torch.ones(2, 4), captions, [0, 1, 1])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    k=st.integers(1, 70),
    tile=st.integers(1, 64),
)
def test_nearest_equals_a_stable_sort(seed, n, k, tile):
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, (7, 3)).astype(np.float32)
    candidates = rng.integers(-2, 3, (n, 3)).astype(np.float32)
    expected = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :k]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vse_scale.retrieval.ranks._CANDIDATE_TILE", tile)
        patch.setattr("vse_scale.retrieval.ranks._QUERY_TILE", 3)
        scores, indices = nearest(queries, candidates, k)

    assert indices.tolist() == expected.tolist()
    found = np.take_along_axis(queries @ candidates.T, expected, axis=1)
    assert scores.numpy().tolist() == found.tolist()


def test_nearest_refuses_no_neighbours():
    with pytest.raises(ValueError, match="k is 0"):
        nearest(np.ones((1, 2)), np.ones((1, 2)), 0)
