"""Mining, violations and ranks on a device."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_hardest import expect_hardest, mining_problem
from tests.kernels.truth import masked_scores
from tests.kernels.wide import expect_wide_mining
from vse_kernels import all_violations, hardest_negatives, retrieval_ranks
from vse_kernels.ranks import reference as rank_tiles

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [64, 100])
def test_against_the_whole_matrix(device, scaled, width, dtype):
    rows, columns = scaled((3001, 2049), (140, 70))
    given = mining_problem(rows, columns, width, 0, dtype)
    found = hardest_negatives(*(tensor.to(device) for tensor in given), impl="triton")
    again = hardest_negatives(*(tensor.to(device) for tensor in given), impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    expect_hardest(type(found)(*(tensor.cpu() for tensor in found)), masked_scores(*given))


def test_triton_and_torch_agree(device, scaled):
    """Random embeddings: the scores to rounding, the indices wherever the margin is clear."""
    size = scaled(4096, 140)
    generator = torch.Generator().manual_seed(0)
    queries, candidates = torch.nn.functional.normalize(
        torch.randn(2, size, 256, generator=generator), dim=2
    ).to(device)
    ids = torch.arange(size, device=device) // 2
    found = hardest_negatives(queries, candidates, ids, ids, impl="triton")
    expected = hardest_negatives(queries, candidates, ids, ids, impl="torch")
    torch.testing.assert_close(found.row_score, expected.row_score)
    torch.testing.assert_close(found.column_score, expected.column_score)
    assert (found.row_index == expected.row_index).float().mean() > 0.999


def test_offsets_beyond_two_to_the_31(device):
    expect_wide_mining(device)


def test_mining_stores_no_matrix(device, on_device):
    size = 16384
    queries = torch.randn(size, 64, device=device, dtype=torch.bfloat16)
    ids = torch.arange(size, device=device)
    hardest_negatives(queries, queries, ids, ids)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hardest_negatives(queries, queries, ids, ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 16 * 2**20


def test_all_violations(device, scaled):
    size = scaled(3000, 50)
    generator = torch.Generator().manual_seed(1)
    images, captions = torch.randn(2, size, 32, generator=generator, dtype=torch.float64)
    ids = torch.arange(size) // 3
    positive = (images * captions).sum(1)
    arguments = (images, captions, ids, ids, positive, positive)
    expected = all_violations(*arguments, 0.2, True)
    found = all_violations(*(tensor.to(device) for tensor in arguments), 0.2, True)
    for actual, want in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.cpu(), want)


def test_ranks(device, scaled, monkeypatch):
    """As on CPU in float64, and bitwise the same from shards."""
    images = scaled(2300, 70)
    if scaled(False, True):
        monkeypatch.setattr(rank_tiles, "TILE_QUERIES", 32)
        monkeypatch.setattr(rank_tiles, "TILE_CANDIDATES", 48)
    generator = torch.Generator().manual_seed(2)
    left = torch.randint(-3, 4, (images, 16), generator=generator).float()
    right = torch.randint(-3, 4, (5 * images, 16), generator=generator).float()
    offsets, indices = torch.arange(0, 5 * images + 1, 5), torch.arange(5 * images)
    whole = retrieval_ranks(*(t.to(device) for t in (left, right, offsets, indices)))
    expected = retrieval_ranks(left.double(), right.double(), offsets, indices)
    assert torch.equal(whole.cpu(), expected)
    cut = images // 3
    parts = [
        retrieval_ranks(
            left[a:b].to(device),
            right.to(device),
            (offsets[a : b + 1] - 5 * a).to(device),
            indices[5 * a : 5 * b].to(device),
            row_start=a,
        )
        for a, b in ((0, cut), (cut, images))
    ]
    assert torch.equal(torch.cat(parts), whole)
