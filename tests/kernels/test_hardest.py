"""Hardest negatives and all violations against whole matrices in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.truth import masked_scores
from vse_kernels import all_violations, hardest, hardest_negatives
from vse_kernels.hardest import choice, reference


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(reference, "TILE_ROWS", 5)
    monkeypatch.setattr(reference, "TILE_COLUMNS", 7)


def mining_problem(rows, columns, width, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    # Quarters: exact products, so that ties are ties in every implementation.
    queries = torch.randint(-4, 5, (rows, width), generator=generator).to(dtype) / 4
    candidates = torch.randint(-4, 5, (columns, width), generator=generator).to(dtype) / 4
    qids = torch.randint(-1, 6, (rows,), generator=generator)
    cids = torch.randint(-1, 6, (columns,), generator=generator)
    return queries, candidates, qids, cids


def expect_hardest(found, scores, columns=True):
    for dim, score, index in (
        (1, found.row_score, found.row_index),
        (0, found.column_score, found.column_index),
    ):
        if dim == 0 and not columns:
            assert score is None
            assert index is None
            continue
        best = (
            scores.max(dim).values
            if scores.shape[dim]
            else scores.new_full((scores.shape[1 - dim],), -math.inf)
        )
        assert torch.equal(score.double(), best)
        lines = scores if dim == 1 else scores.T
        for line, value, where in zip(lines.tolist(), best.tolist(), index.tolist(), strict=True):
            assert where == (-1 if value == -math.inf else line.index(value))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 17),
    columns=st.integers(1, 19),
    width=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    both=st.booleans(),
)
def test_any_shape(rows, columns, width, seed, both):
    given_ = mining_problem(rows, columns, width, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "TILE_ROWS", 5)
        patch.setattr(reference, "TILE_COLUMNS", 7)
        found = hardest_negatives(*given_, columns=both)
    expect_hardest(found, masked_scores(*given_), both)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    given_ = mining_problem(40, 50, 16, 1, dtype)
    found = hardest_negatives(*given_)
    assert found.row_score.dtype == (dtype if dtype == torch.float64 else torch.float32)
    expect_hardest(found, masked_scores(*given_))


def test_nothing_to_mine():
    queries, ids = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)
    found = hardest_negatives(queries, queries, ids, ids)
    assert found.row_index.tolist() == found.column_index.tolist() == [-1, -1, -1]
    assert found.row_score.tolist() == found.column_score.tolist() == [-math.inf] * 3


def test_nan_is_the_hardest():
    queries = torch.tensor([[1.0], [math.nan]])
    found = hardest_negatives(queries, torch.ones(2, 1), torch.tensor([0, 1]), torch.tensor([2, 3]))
    assert found.row_index.tolist() == [0, 0]
    assert found.column_index.tolist() == [1, 1]
    assert found.column_score.isnan().all()


def hinge_truth(images, captions, ids, margin):
    """The loss over all violations by autograd in float64, and its gradients."""
    images, captions = (x.detach().double().requires_grad_() for x in (images, captions))
    scores = images @ captions.T
    positive = scores.diagonal()
    apart = (ids[:, None] != ids[None]) & (ids >= 0)[:, None] & (ids >= 0)[None]
    rows = ((margin + scores - positive[:, None]).clamp_min(0) * apart).sum()
    columns = ((margin + scores - positive[None]).clamp_min(0) * apart).sum()
    (rows + columns).backward()
    return (rows + columns).item(), images.grad, captions.grad


def hinge_by_violations(images, captions, ids, margin):
    """Loss and gradients put together from `all_violations` alone."""
    positive = (images * captions).sum(1)
    found = all_violations(images, captions, ids, ids, positive, positive, margin, True)
    count = (found.row_count + found.column_count)[:, None]
    return (
        (found.row_loss.sum() + found.column_loss.sum()).item(),
        found.query_gradient - count * captions,
        found.candidate_gradient - count * images,
    )


@pytest.mark.parametrize("padded", [False, True])
def test_all_violations(small_tiles, padded):
    generator = torch.Generator().manual_seed(3)
    images, captions = torch.randn(2, 18, 6, generator=generator, dtype=torch.float64)
    ids = torch.arange(18) // 2
    if padded:
        ids[-4:] = -1
    loss, *gradients = hinge_by_violations(images, captions, ids, 0.2)
    expected, *wanted = hinge_truth(images, captions, ids, 0.2)
    assert loss == pytest.approx(expected, rel=1e-12)
    for actual, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(actual, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 64])
def test_published_losses(shared, small_tiles, size):
    published = np.load(shared / f"reference/loss_{size}.npz")
    images, captions = (torch.from_numpy(published[k]) for k in ("images", "captions"))
    ids = torch.arange(size)
    loss, to_images, to_captions = hinge_by_violations(images, captions, ids, 0.2)
    assert loss == pytest.approx(float(published["loss_sum"]), abs=1e-9)
    found = hardest_negatives(images, captions, ids, ids)
    positive = (images * captions).sum(1)
    hardest = [
        (0.2 + s - positive).clamp_min(0).sum() for s in (found.row_score, found.column_score)
    ]
    assert sum(hardest).item() == pytest.approx(float(published["loss_max"]), abs=1e-9)
    names = {key: published[key] for key in published.files if "grad" in key and "sum" in key}
    for actual, part in ((to_images, "image"), (to_captions, "caption")):
        (key,) = [name for name in names if part in name]
        torch.testing.assert_close(actual, torch.from_numpy(names[key]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("limited", [False, True])
def test_pairs_that_share_a_row_are_as_its_copies(small_tiles, limited):
    """Three captions to an image, some of them padding, both ways around."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    captions = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    ids = (torch.arange(8) // 2).repeat_interleave(3)
    ids[torch.tensor([1, 9, 10, 11, 23])] = -1
    repeated = images.repeat_interleave(3, 0)
    positive = (repeated * captions).sum(1)
    limit = positive + 0.5 if limited else None
    want = all_violations(repeated, captions, ids, ids, positive, positive, 0.2, True, limit, limit)
    assert want.row_count.sum() > 20
    shared = positive.masked_fill(ids < 0, torch.inf)
    rows = (images, ids.view(8, 3).amax(1), shared.view(8, 3))
    limits = None if limit is None else limit.view(8, 3)
    by_row = all_violations(
        rows[0], captions, rows[1], ids, rows[2], shared, 0.2, True, limits, limit
    )
    by_column = all_violations(
        captions, rows[0], ids, rows[1], shared, rows[2], 0.2, True, limit, limits
    )
    of_images = want.query_gradient.view(8, 3, 5).sum(1)
    for found, expected in (
        (by_row.row_loss.flatten(), want.row_loss),
        (by_row.row_count.flatten(), want.row_count),
        (by_row.column_loss, want.column_loss),
        (by_row.column_count, want.column_count),
        (by_row.query_gradient, of_images),
        (by_row.candidate_gradient, want.candidate_gradient),
        (by_column.row_loss, want.column_loss),
        (by_column.row_count, want.column_count),
        (by_column.column_loss.flatten(), want.row_loss),
        (by_column.column_count.flatten(), want.row_count),
        (by_column.query_gradient, want.candidate_gradient),
        (by_column.candidate_gradient, of_images),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_row_of_padding_alone_is_none_of_the_others_negatives(small_tiles, pairs):
    """Its positives are infinite, its id is that of an image: as if it were not there."""
    generator = torch.Generator().manual_seed(9)
    images, captions = torch.randn(2, 12, 4, generator=generator, dtype=torch.float64)
    ids, there = torch.arange(12), torch.arange(12) % 3 > 0
    positive = (images * captions).sum(1)[:, None].repeat(1, pairs)
    padded = positive.masked_fill(~there[:, None], torch.inf)
    found = all_violations(images, captions, ids, ids, padded, padded, 0.2, True)
    rest = (side[there] for side in (images, captions, ids, ids, positive, positive))
    want = all_violations(*rest, 0.2, True)
    assert want.row_count.sum() > 20
    for actual, expected in zip(found, want, strict=True):
        torch.testing.assert_close(actual[there], expected, rtol=0, atol=1e-12)
        assert not actual[~there].any()


def test_a_rank_gets_its_own_gradient(small_tiles):
    """Two calls, own images and own captions against all, give the rank's part of the whole."""
    generator = torch.Generator().manual_seed(5)
    images, captions = torch.randn(2, 12, 4, generator=generator, dtype=torch.float64)
    ids = torch.arange(12) // 3
    _, to_images, to_captions = hinge_truth(images, captions, ids, 0.2)
    positive = (images * captions).sum(1)
    own = slice(4, 8)
    by_image, by_caption = (
        all_violations(mine[own], other, ids[own], ids, positive[own], positive, 0.2)
        for mine, other in ((images, captions), (captions, images))
    )
    count = (by_image.row_count + by_caption.row_count)[:, None]
    torch.testing.assert_close(by_image.query_gradient - count * captions[own], to_images[own])
    torch.testing.assert_close(by_caption.query_gradient - count * images[own], to_captions[own])
    assert by_image.candidate_gradient is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"candidates": torch.zeros(4, 5)}, ValueError, r"candidates has shape \(4, 5\)"),
        ({"candidates": torch.zeros(4, 3).double()}, TypeError, "candidates is float64"),
        ({"queries": torch.zeros(2, 3).int()}, TypeError, "queries is int32"),
        ({"query_ids": torch.zeros(3).long()}, ValueError, r"query_ids has shape \(3,\)"),
        ({"candidate_ids": torch.zeros(4)}, TypeError, "candidate_ids is float32"),
        ({"impl": "gpu"}, ValueError, 'impl is "gpu"'),
    ],
)
def test_errors_say_value_and_limit(change, error, message):
    arguments = {
        "queries": torch.zeros(2, 3),
        "candidates": torch.zeros(4, 3),
        "query_ids": torch.zeros(2).long(),
        "candidate_ids": torch.zeros(4).long(),
    }
    with pytest.raises(error, match=message):
        hardest_negatives(**{**arguments, **change})


def test_limits_are_checked_and_warn_of_no_fallback(monkeypatch):
    """By torch everywhere, so that "auto" does not ask for Triton, which would warn on a GPU."""

    def asked(name, *given):
        raise AssertionError(f"{name} asks for Triton")

    monkeypatch.setattr(hardest, "use_triton", asked)
    queries, candidates, *ids = mining_problem(4, 3, 2, 0)
    with pytest.raises(ValueError, match=r"query_limit has shape \(1,\)"):
        hardest_negatives(queries, candidates, *ids, columns=False, query_limit=torch.ones(1))
    positives = torch.zeros(4), torch.zeros(3)
    for name in ("query_limit", "candidate_limit"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(1,\)"):
            all_violations(queries, candidates, *ids, *positives, 0.2, **{name: torch.ones(1)})
    limit = torch.full((4,), 0.25)
    found = hardest_negatives(queries, candidates, *ids, columns=False, query_limit=limit)
    scores = masked_scores(queries, candidates, *ids)
    best = scores.masked_fill(scores > 0.25, -math.inf).max(1).values
    assert torch.equal(found.row_score.double(), best)
    with pytest.raises(AssertionError, match="hardest_negatives asks"):
        hardest_negatives(queries, candidates, *ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_several_limits_of_a_row_share_its_product(small_tiles, monkeypatch, dtype):
    given_ = mining_problem(12, 17, 3, 5, dtype)
    limits = torch.tensor([[0.5, -0.25, math.inf, -math.inf]]).to(dtype).repeat(12, 1)
    limits[3] = torch.tensor([0.0, 1.0, 0.25, 0.5])
    expected = [
        hardest_negatives(*given_, columns=False, query_limit=limit) for limit in limits.unbind(1)
    ]
    made = []
    plain = reference.tiles
    monkeypatch.setattr(reference, "tiles", lambda *rows: made.append(1) or plain(*rows))
    found = hardest_negatives(*given_, columns=False, query_limit=limits)
    assert len(made) == 1
    scores = masked_scores(*given_)
    for number, alone in enumerate(expected):
        below = scores.masked_fill(scores > limits[:, number, None], -math.inf)
        best = below.max(1).values
        index = below.eq(best[:, None]).int().argmax(1).masked_fill(best == -math.inf, -1)
        assert torch.equal(found.row_score[:, number].double(), best)
        assert torch.equal(found.row_index[:, number], index)
        assert torch.equal(found.row_index[:, number], alone.row_index)


def tf32(values):
    """Round to the 10 explicit bits of TF32, to nearest, as `cvt.rna.tf32.f32` does."""
    bits = values.contiguous().view(torch.int32) + 0x1000
    return (bits & ~0x1FFF).view(torch.float32)


def test_three_products_of_tf32_parts_are_as_exact_as_float32():
    """The bound that the kernel's documents state: 3 * 2**-22 of the sum of absolute products.

    a = high + low + rest with |rest| <= 2**-22 |a|, and low * low is left out. One product of
    TF32 parts breaks the bound by far.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 64, 1024, generator=generator)
    truth = left.double() @ right.double().T
    bound = 3 * 2.0**-22 * (left.abs().double() @ right.abs().double().T)
    high_left, high_right = tf32(left), tf32(right)
    low_left, low_right = tf32(left - high_left), tf32(right - high_right)
    parts = [(high_left, high_right), (high_left, low_right), (low_left, high_right)]
    products = [a.double() @ b.double().T for a, b in parts]
    assert ((sum(products) - truth).abs() <= bound).all()
    assert ((products[0] - truth).abs() > bound).any()
    assert {choice.blocks(torch.float32, sm).precision for sm in (8, 9, 10)} == {"tf32x3"}
    # Rounding of a float32 accumulator is larger than what the split leaves out.
    plain = (left @ right.T).double()
    assert (sum(products) - truth).abs().max() < (plain - truth).abs().max()
