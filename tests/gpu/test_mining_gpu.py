"""Mining, violations and ranks on a device."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.test_hardest import expect_hardest, mining_problem
from tests.kernels.test_violations_triton import expect_truth, truth, violation_problem
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


def test_float32_scores_keep_the_documented_bound(device, scaled):
    """3 * 2**-22 of the sum of absolute products, and 2**-24 for each number that is added.

    One product of TF32 parts breaks it by far.
    """
    rows, columns = scaled((2048, 4096), (70, 80))
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, 64, generator=generator)
    candidates = torch.randn(columns, 64, generator=generator)
    given = (queries, candidates, torch.arange(rows), torch.arange(columns))
    found = hardest_negatives(*(tensor.to(device) for tensor in given), impl="triton")
    bound = (3 * 2.0**-22 + 64 * 2.0**-24) * (queries.abs().double() @ candidates.abs().double().T)
    truth = masked_scores(*given)
    for dim, score in ((1, found.row_score), (0, found.column_score)):
        least, most = ((truth + sign * bound).max(dim).values for sign in (-1, 1))
        assert ((least <= score.cpu()) & (score.cpu() <= most)).all()


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


def test_edge_scores(device):
    """Infinities, denormals, and NaN, which counts as the largest, as torch has them."""
    queries = torch.tensor([[1.0], [math.nan], [-1.0], [math.inf], [1e-40]], device=device)
    candidates = torch.tensor([[1.0], [2.0], [-3.0], [-1e-40], [0.0]], device=device)
    ids = torch.arange(5, device=device)
    expected = hardest_negatives(queries, candidates, ids, ids + 1, impl="torch")
    found = hardest_negatives(queries, candidates, ids, ids + 1, impl="triton")
    for actual, want in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, want, equal_nan=True)


def test_nan_on_the_tensor_cores(device):
    """NaN and infinity minus infinity, from products of half precision."""
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(70, 64, generator=generator)
    queries[3, 5] = math.nan
    queries[7, :2] = torch.tensor([math.inf, -math.inf])
    candidates = torch.randn(80, 64, generator=generator).abs() + 0.1
    ids = torch.arange(80)
    given = (queries.bfloat16(), candidates.bfloat16(), ids[:70], ids + 80)
    found = hardest_negatives(*(tensor.to(device) for tensor in given), impl="triton")
    assert found.row_score[[3, 7]].isnan().all()
    assert found.row_index[[3, 7]].tolist() == [0, 0]
    assert found.column_score.isnan().all()
    assert (found.column_index == 3).all()


def test_mining_fits_a_graph(device, on_device):
    given = [t.to(device) for t in mining_problem(300, 200, 64, 0, torch.bfloat16)]
    expected = hardest_negatives(*given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = hardest_negatives(*given)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_offsets_beyond_two_to_the_31(device):
    expect_wide_mining(device)


def peak_without_waiting(call):
    """Bytes at the peak of a second call, which must not wait for the device."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_mining_stores_no_matrix(device, on_device):
    size = 16384
    queries = torch.randn(size, 64, device=device, dtype=torch.bfloat16)
    ids = torch.arange(size, device=device)
    peak = peak_without_waiting(lambda: hardest_negatives(queries, queries, ids, ids))
    assert peak < 16 * 2**20


def test_violations_store_no_matrix(device, on_device):
    """The matrix would take 1 GiB; there are 256 MiB of violations, and gradients."""
    size = 16384
    queries = torch.nn.functional.normalize(torch.randn(size, 64, device=device))
    ids = torch.arange(size, device=device)
    positive = (queries * queries).sum(1)
    peak = peak_without_waiting(
        lambda: all_violations(queries, queries, ids, ids, positive, positive, 0.2, True)
    )
    assert peak < 350 * 2**20


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("positives", [1, 5])
def test_all_violations_by_triton(device, scaled, dtype, positives):
    given = violation_problem(scaled(1500, 40), scaled(2100, 70), 48, dtype, positives)
    limits = [positive + 0.5003 for positive in given[4:]]
    for limited in ((None, None), limits):
        on_device = [None if one is None else one.to(device) for one in (*given, *limited)]
        found = all_violations(*on_device[:6], 0.2, True, *on_device[6:], impl="triton")
        expect_truth(type(found)(*(one.cpu() for one in found)), truth(*given, limited), 1e-4)


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
