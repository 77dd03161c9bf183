"""Ranks against Python's own counting, and bitwise independence of sharding."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.truth import rank_truth
from vse_kernels import retrieval_ranks
from vse_kernels.ranks import reference


def to_csr(positives):
    offsets = torch.tensor([0, *np.cumsum([len(own) for own in positives])])
    return offsets, torch.tensor([i for own in positives for i in own], dtype=torch.int64)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(reference, "TILE_QUERIES", 4)
    monkeypatch.setattr(reference, "TILE_CANDIDATES", 6)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(1, 11),
    columns=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    kept=st.integers(0, 2),
)
def test_any_positives_with_ties(data, rows, columns, seed, kept):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (rows, 3), generator=generator).float()
    candidates = torch.randint(-2, 3, (columns, 3), generator=generator).float()
    index = st.integers(0, columns - 1)
    positives = data.draw(
        st.lists(st.lists(index, max_size=4, unique=True), min_size=rows, max_size=rows)
    )
    excluded = data.draw(st.lists(st.integers(-1, columns - 1), min_size=rows, max_size=rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "TILE_QUERIES", 4)
        patch.setattr(reference, "TILE_CANDIDATES", 6)
        patch.setattr(reference, "KEPT_TILES", kept)
        ranks = retrieval_ranks(queries, candidates, *to_csr(positives), torch.tensor(excluded))
    assert ranks.tolist() == rank_truth(queries @ candidates.T, positives, excluded)


@pytest.mark.parametrize("width", [7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sharding_changes_nothing(monkeypatch, width, dtype):
    """Near ties everywhere: candidates repeat, so that the last bit decides many ranks."""
    monkeypatch.setattr(reference, "TILE_QUERIES", 32)
    monkeypatch.setattr(reference, "TILE_CANDIDATES", 48)
    generator = torch.Generator().manual_seed(width)
    queries = torch.nn.functional.normalize(torch.randn(150, width, generator=generator)).to(dtype)
    candidates = queries.repeat_interleave(2, 0)
    positives = [[2 * i, (2 * i + 31) % 300] for i in range(150)]
    whole = retrieval_ranks(queries, candidates, *to_csr(positives))
    for cuts in ([0, 150], [0, 1, 150], [0, 31, 33, 97, 150], list(range(0, 151, 10))):
        parts = []
        for start, stop in pairwise(cuts):
            # Another place in memory: a view that is not aligned.
            shifted = torch.empty((stop - start) * width + 1, dtype=dtype)[1:].view(-1, width)
            shifted.copy_(queries[start:stop])
            parts.append(
                retrieval_ranks(
                    shifted, candidates, *to_csr(positives[start:stop]), row_start=start
                )
            )
        assert torch.equal(torch.cat(parts), whole)


def test_a_duplicate_of_the_positive_counts_against():
    queries = torch.eye(2)
    candidates = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    offsets, indices = to_csr([[0], [2]])
    assert retrieval_ranks(queries, candidates, offsets, indices).tolist() == [2, 1]
    excluded = torch.tensor([1, -1])
    assert retrieval_ranks(queries, candidates, offsets, indices, excluded).tolist() == [1, 1]


def test_own_positives_never_count_against():
    candidates = torch.tensor([[3.0], [2.0], [1.0], [0.5]])
    offsets, indices = to_csr([[3, 0, 1]])
    assert retrieval_ranks(torch.ones(1, 1), candidates, offsets, indices).tolist() == [1]


@pytest.mark.parametrize(
    ("scores", "positive", "rank"),
    [
        ([math.nan, 1.0, 0.0], 0, 3),
        ([math.nan, 1.0, 0.0], 1, 2),
        ([math.nan, math.nan, math.nan], 0, 3),
        ([-math.inf, 1.0, 0.0], 0, 3),
    ],
)
def test_broken_scores_never_flatter(scores, positive, rank):
    candidates = torch.tensor(scores)[:, None]
    offsets, indices = to_csr([[positive]])
    assert retrieval_ranks(torch.ones(1, 1), candidates, offsets, indices).tolist() == [rank]


def test_published_recalls(shared):
    embeddings = np.load(shared / "reference/retrieval.npz")
    expected = json.loads((shared / "reference/retrieval_expected.json").read_text())
    images = torch.from_numpy(embeddings["image_embeddings"])
    captions = torch.from_numpy(embeddings["caption_embeddings"])
    to_captions = retrieval_ranks(
        images, captions, *to_csr([list(range(5 * i, 5 * i + 5)) for i in range(250)])
    )
    to_images = retrieval_ranks(captions, images, *to_csr([[i // 5] for i in range(1250)]))
    for ranks, direction in ((to_captions, "i2t"), (to_images, "t2i")):
        ranks = ranks.double()
        recalls = [100 * (ranks <= k).double().mean().item() for k in (1, 5, 10)]
        assert [*recalls, ranks.quantile(0.5).item(), ranks.mean().item()] == pytest.approx(
            expected["full"][direction], abs=1e-9
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"positive_offsets": torch.tensor([0, 1])}, ValueError, "positive_offsets has shape"),
        ({"positive_offsets": torch.tensor([0, 1, 3])}, ValueError, "runs from 0 to 3; .* 0 to 2"),
        ({"positive_offsets": torch.tensor([0, 3, 2])}, ValueError, "decreases"),
        ({"positive_indices": torch.tensor([0, 4])}, ValueError, "holds 4; 4 candidates"),
        ({"excluded": torch.tensor([-2, 0])}, ValueError, "excluded holds -2"),
        ({"row_start": -1}, ValueError, "row_start is -1"),
        ({"candidates": torch.zeros(4, 2)}, ValueError, "candidates has shape"),
        ({"queries": torch.zeros(2, 3).half()}, TypeError, "candidates is float32"),
    ],
)
def test_errors_say_value_and_limit(change, error, message):
    arguments = {
        "queries": torch.zeros(2, 3),
        "candidates": torch.zeros(4, 3),
        "positive_offsets": torch.tensor([0, 1, 2]),
        "positive_indices": torch.tensor([0, 1]),
    }
    with pytest.raises(error, match=message):
        retrieval_ranks(**{**arguments, **change})
