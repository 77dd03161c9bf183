"""Hardest negatives and all violations against whole matrices in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.truth import masked_scores
from vse_kernels import all_violations, hardest_negatives
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


def test_limits_are_checked_and_warn_of_no_fallback(recwarn):
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
    assert not recwarn.list


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
