"""Pooling: values, gradients, published numbers, edges, errors, on the torch paths."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.truth import pool_truth
from vse_kernels import checks, gpo, gpo_pool
from vse_kernels.gpo import choice, reference
from vse_kernels.gpo.network import comparators

POSITIONS = [1, 2, 5, 8, 31, 36, 64, 65, 100, 196, 256]
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


# How long the samples are: one position, all of them, or anything between, both ends included.
LENGTHS = {
    "one": lambda positions, drawn: torch.ones_like(drawn),
    "all": lambda positions, drawn: torch.full_like(drawn, positions),
    "mixed": lambda positions, drawn: torch.cat(
        [torch.tensor([1]), drawn[1:-1], torch.tensor([positions])]
    ),
}


def problem(
    samples, positions, columns, dtype=torch.float32, seed=0, table_rows=3, ties=False, long="mixed"
):
    """Features with NaN beyond the lengths; with ties, many equal values, equal rows and -0."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, positions, columns, generator=generator, dtype=torch.float64)
    if ties:
        features = (features * 2).round() / 2
        features[:, positions // 2] = features[:, 0]
        features[0] = 0.5
    features = features.to(dtype)
    lengths = torch.randint(1, positions + 1, (samples,), generator=generator)
    lengths = LENGTHS[long](positions, lengths)
    beyond = torch.arange(positions) >= lengths[:, None]
    features[beyond] = math.nan
    table = torch.randn(table_rows, positions, generator=generator, dtype=torch.float64)
    table = table.softmax(1).to(torch.float64 if dtype == torch.float64 else torch.float32)
    rows = torch.randint(0, table_rows, (samples,), generator=generator)
    upstream = torch.randn(samples, columns, generator=generator, dtype=torch.float64).to(dtype)
    return features, lengths, table, rows, upstream


def run(features, lengths, table, rows, upstream, **kwargs):
    x = features.clone().requires_grad_()
    w = table.clone().requires_grad_()
    pooled = gpo_pool(x, lengths, w, rows, **kwargs)
    pooled.backward(upstream)
    return pooled.detach(), x.grad, w.grad


def share_columns(monkeypatch, lanes, size=2):
    """Let Triton sort with `size` positions in each of `lanes`, whatever their number."""
    monkeypatch.setattr(choice, "NETWORKS", {})
    for name in ("FORWARD_LANES", "BACKWARD_LANES"):
        monkeypatch.setattr(choice, name, {size * lanes: lanes})


def close(actual, expected, dtype):
    scale = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual.double(), expected, rtol=scale, atol=scale * max(1.0, expected.abs().max().item())
    )


@pytest.mark.parametrize("ties", [False, True], ids=["noise", "ties"])
@pytest.mark.parametrize("long", list(LENGTHS))
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("positions", POSITIONS)
def test_values_and_gradients(positions, dtype, long, ties):
    given_ = problem(4, positions, 7, dtype, seed=positions, ties=ties, long=long)
    expected = pool_truth(*given_)
    for actual, want in zip(run(*given_), expected, strict=True):
        close(actual, want, dtype)
    with torch.no_grad():
        close(gpo_pool(*given_[:4]), expected[0], dtype)


@pytest.mark.parametrize("ties", [False, True], ids=["noise", "ties"])
@pytest.mark.parametrize("positions", [1, 2, 36, 300])
def test_numpy_sorts_as_torch_does(monkeypatch, positions, ties):
    given_ = problem(5, positions, 9, seed=positions, ties=ties)
    results = []
    for most in (0, torch.get_num_threads()):
        monkeypatch.setattr(reference, "MOST_THREADS", most)
        results.append(run(*given_))
    for by_torch, by_numpy in zip(*results, strict=True):
        assert torch.equal(by_torch, by_numpy)


@pytest.mark.parametrize("name", ["region", "grid", "text"])
def test_published_operator(shared, name):
    numbers = {
        k: torch.from_numpy(v) for k, v in np.load(shared / f"reference/gpo_{name}.npz").items()
    }
    features, lengths, weights = (numbers[key] for key in ("features", "lengths", "weights"))
    rows = torch.arange(len(lengths))
    pooled, gradient, _ = run(features, lengths, weights, rows, numbers["grad_pooled"])
    torch.testing.assert_close(pooled, numbers["pooled"], rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, numbers["grad_features"], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        gpo_pool(features, lengths, weights, rows), numbers["pooled"], rtol=0, atol=1e-9
    )


def test_ties_take_their_weights_in_order():
    features = torch.tensor([2.0, 5.0, 2.0, 5.0, 2.0])[None, :, None]
    table = torch.tensor([[16.0, 8.0, 4.0, 2.0, 1.0]])
    zero = torch.zeros(1, dtype=torch.int64)
    _, gradient, _ = run(features, torch.tensor([5]), table, zero, torch.ones(1, 1))
    assert gradient.flatten().tolist() == [4.0, 16.0, 2.0, 8.0, 1.0]


EDGES = [
    [math.nan, 1.0, -1.0],
    [1.0, math.nan, math.nan],
    [-1.0, math.inf, -math.inf],
    [-math.inf, -math.inf, -math.inf],
    [0.0, -0.0, 0.0],
    [-0.0, 0.0, -0.0],
    [3e38, -3e38, 1e-40],
    [1e-40, -1e-40, 1e-45],
    [2.0, 2.0, 2.0],
]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("values", EDGES, ids=str)
def test_edge_values(values, dtype):
    """Values, and the order of equal ones, which the gradient of the features shows."""
    features = torch.tensor(values, dtype=dtype)[None, :, None]
    table = torch.tensor([[0.5, 0.375, 0.125]])
    given_ = (features, torch.tensor([3]), table, torch.tensor([0]), torch.ones(1, 1, dtype=dtype))
    expected = pool_truth(*given_)
    for actual, want in zip(
        (*run(*given_), gpo_pool(*given_[:4])), (*expected, expected[0]), strict=True
    ):
        torch.testing.assert_close(
            actual, want.to(actual.dtype), rtol=TOLERANCE[dtype], atol=0, equal_nan=True
        )


ANY_FLOAT = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 2.0**120, 1.0]),
    # Sums of these stay finite in float32, also the gradient of a weight.
    st.floats(-(2.0**120), 2.0**120, width=32),
)


def expect_any_values(values, length, **kwargs):
    """Pooling of values (K, D), the first `length` of them valid, as in float64."""
    features = torch.tensor(values)[None]
    _, positions, columns = features.shape
    lengths = torch.tensor([min(length, positions)])
    table = torch.linspace(1, 0.1, positions)[None] / positions
    rows = torch.zeros(1, dtype=torch.int64)
    upstream = torch.linspace(1, -0.5, columns)[None]
    expected = pool_truth(features, lengths, table, rows, upstream)
    results = run(features, lengths, table, rows, upstream, **kwargs)
    scale = max(1e-30, features.double().nan_to_num(0, 0, 0).abs().max().item())
    for actual, want in zip(results, expected, strict=True):
        torch.testing.assert_close(
            actual.double(), want, rtol=1e-5, atol=1e-5 * scale, equal_nan=True
        )


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(ANY_FLOAT, min_size=3, max_size=3), min_size=1, max_size=9),
    length=st.integers(1, 9),
)
def test_any_values(values, length):
    expect_any_values(values, length)


def test_padding_gets_no_gradient_and_no_say():
    features, lengths, table, rows, upstream = problem(5, 12, 3)
    clean = features.nan_to_num(0.0)
    hostile = torch.where(features.isnan(), math.inf, features)
    results = [run(x, lengths, table, rows, upstream) for x in (features, clean, hostile)]
    for actual in results[1:]:
        for left, right in zip(results[0], actual, strict=True):
            assert torch.equal(left, right)
    beyond = torch.arange(12) >= lengths[:, None]
    assert torch.equal(results[0][1][beyond], torch.zeros(int(beyond.sum()), 3))


def test_weights_beyond_the_length_are_ignored():
    features, _, table, rows, upstream = problem(2, 6, 3)
    lengths = torch.tensor([1, 4])
    spoilt = table.clone()
    spoilt[:, 4:] = math.nan
    results = [run(features, lengths, w, rows, upstream) for w in (table, spoilt)]
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_strides_do_not_matter():
    features, lengths, table, rows, upstream = problem(4, 9, 6)
    strided = features.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    for left, right in zip(
        run(features, lengths, table, rows, upstream),
        run(strided, lengths, table, rows, upstream),
        strict=True,
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("positions", POSITIONS)
def test_same_bits_twice(positions):
    given_ = problem(6, positions, 33, ties=True)
    for left, right in zip(run(*given_), run(*given_), strict=True):
        assert torch.equal(left, right)


IMPLS = ["torch"] + ["triton"] * (os.environ.get("TRITON_INTERPRET") == "1")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_out_of_the_table_count_as_the_nearest(monkeypatch, dtype, impl):
    """As on a GPU, where they are not checked: none may reach another memory."""
    features, lengths, table, _, upstream = problem(6, 4, 4, dtype)
    rows = torch.tensor([-(1 << 63), -1, 0, 2, 3, 1 << 32])
    expected = pool_truth(features, lengths, table, rows.clamp(0, 2), upstream)
    for place in (checks, gpo):
        monkeypatch.setattr(place, "values_are_checked", lambda tensor: False)
    given_ = (features, lengths, table, rows, upstream)
    for actual, want in zip(run(*given_, impl=impl), expected, strict=True):
        close(actual, want, dtype)


def test_empty_batch():
    pooled = gpo_pool(
        torch.zeros(0, 4, 3),
        torch.zeros(0, dtype=torch.int64),
        torch.ones(1, 4),
        torch.zeros(0, dtype=torch.int64),
    )
    assert pooled.shape == (0, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 36, 64, 100, 196])
def test_network_sorts(size):
    """The 0-1 principle on every threshold of random orders, and on sorted and reversed ones."""
    generator = torch.Generator().manual_seed(size)
    orders = [torch.randperm(size, generator=generator) for _ in range(20)]
    for order in [*orders, torch.arange(size), torch.arange(size).flip(0)]:
        values = order.tolist()
        for i, j in comparators(size):
            if values[i] < values[j]:
                values[i], values[j] = values[j], values[i]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(2, 4, 3).long()}, TypeError, "features is int64"),
        ({"features": torch.zeros(2, 4)}, ValueError, r"features has shape \(2, 4\)"),
        ({"features": torch.zeros(2, 0, 3)}, ValueError, "K must be at least 1"),
        ({"lengths": torch.tensor([1, 5])}, ValueError, "lengths holds 5; .* allows 1 to 4"),
        ({"lengths": torch.tensor([0, 4])}, ValueError, "lengths holds 0; .* allows 1 to 4"),
        ({"lengths": torch.tensor([1])}, ValueError, r"lengths has shape \(1,\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths is float32"),
        ({"weight_table": torch.zeros(2, 5)}, ValueError, r"weight_table has shape \(2, 5\)"),
        ({"weight_table": torch.zeros(0, 4)}, ValueError, "must have at least 1 row"),
        ({"rows": torch.tensor([0, 2])}, ValueError, "rows holds 2; .* allows 0 to 1"),
        ({"impl": "cuda"}, ValueError, 'impl is "cuda"'),
    ],
)
def test_errors_say_value_and_limit(change, error, message):
    arguments = {
        "features": torch.zeros(2, 4, 3),
        "lengths": torch.tensor([1, 4]),
        "weight_table": torch.zeros(2, 4),
        "rows": torch.tensor([0, 1]),
    }
    with pytest.raises(error, match=message):
        gpo_pool(**{**arguments, **change})
