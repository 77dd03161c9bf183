"""The pooling kernels in Triton's interpreter: numbers, not speed.

One column per register here, by one lane and by several; test_gpo_packed.py has two columns.
tests/gpu runs every size on a device.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.test_gpo import (
    ANY_FLOAT,
    EDGES,
    close,
    expect_any_values,
    problem,
    run,
    share_columns,
)
from tests.kernels.truth import pool_truth
from tests.kernels.wide import expect_wide_pooling
from vse_kernels import checks, gpo_pool
from vse_kernels.gpo import choice, launch
from vse_kernels.gpo.triton import reduce_rows

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"),
    # NumPy's, of NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[1, 2, 4], ids=["one lane", "two lanes", "four lanes"])
def lanes(request, monkeypatch):
    """One column per register: by the lane that the sizes ask for, or by several."""
    monkeypatch.setattr(choice, "packs", lambda *given, **options: False)
    if request.param > 1:
        share_columns(monkeypatch, request.param, 16 // request.param)


def expect_true(positions, dtype, columns=19, long="mixed"):
    operands = problem(3, positions, columns, dtype, seed=positions, ties=True, long=long)
    for actual, want in zip(run(*operands, impl="triton"), pool_truth(*operands), strict=True):
        close(actual, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [1, 2, 5, 8])
def test_values_and_gradients(lanes, positions, dtype):
    expect_true(positions, dtype)


@pytest.mark.parametrize("long", ["one", "all"])
def test_lengths_all_alike(lanes, long):
    expect_true(5, torch.float32, long=long)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_lengths_out_of_bounds_count_as_the_nearest(lanes, monkeypatch, dtype):
    """Lengths on a GPU are not checked: none may reach another memory, nor leave a result unset.

    sgl-project/sglang#4100 and thunlp/TritonBench#12 are of Triton kernels that read where a length
    sent them.
    """
    positions = 5
    memory = torch.full((6, 8, 4), 777.0, dtype=dtype)  # what lies beyond the positions
    memory[:, :positions] = torch.randn(6, positions, 4)
    lengths = torch.tensor([-(1 << 63), -1, 0, 3, positions + 1, (1 << 32) + 1])
    _, _, table, _, upstream = problem(6, positions, 4, dtype)
    given = (memory[:, :positions], lengths, table, torch.arange(6) % 3, upstream)
    expected = pool_truth(given[0], lengths.clamp(0, positions), *given[2:])
    monkeypatch.setattr(checks, "values_are_checked", lambda tensor: False)
    for place, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        plain = getattr(place, name)

        def filled(*given, plain=plain, **options):
            return plain(*given, **options).fill_(77)

        monkeypatch.setattr(place, name, filled)
    for actual, want in zip(run(*given, impl="triton"), expected, strict=True):
        close(actual, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [31, 36, 64])
def test_the_network_at_larger_sizes(positions, dtype):
    expect_true(positions, dtype, columns=35)


@pytest.mark.parametrize(
    ("positions", "dtype"),
    [
        pytest.param(65, torch.float32, marks=pytest.mark.slow),
        pytest.param(100, torch.bfloat16, marks=pytest.mark.soak),
        pytest.param(128, torch.float32, marks=pytest.mark.soak),
        pytest.param(196, torch.float16, marks=pytest.mark.soak),
        pytest.param(256, torch.float32, marks=pytest.mark.soak),
        pytest.param(324, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(512, torch.float32, marks=pytest.mark.soak),
    ],
)
def test_grids(positions, dtype):
    """At the sizes of a device."""
    expect_true(positions, dtype, columns=6 if positions == 324 else 7)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_pairs_of_many_positions_go_back_one_by_one(monkeypatch, dtype):
    """Above the size at which 16 bits hold a code of place and rank."""
    monkeypatch.setattr(choice, "LARGEST_CODED", 4)
    monkeypatch.setattr(launch, "network_forward", None)
    monkeypatch.setattr(launch, "packed_backward", None)
    expect_true(5, dtype, columns=6)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    values=st.lists(st.lists(ANY_FLOAT, min_size=2, max_size=2), min_size=4, max_size=4),
    length=st.integers(1, 4),
    shared=st.booleans(),
)
def test_any_values(values, length, shared):
    with pytest.MonkeyPatch.context() as patch:
        if shared:
            share_columns(patch, 2)
        expect_any_values(values, length, impl="triton")


def test_training_and_inference_agree_bitwise(lanes):
    given = problem(2, 6, 9, ties=True)
    trained = run(*given, impl="triton")[0]
    with torch.no_grad():
        assert torch.equal(gpo_pool(*given[:4], impl="triton"), trained)
    for left, right in zip(run(*given, impl="triton"), run(*given, impl="triton"), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", [*EDGES, [6e4, -6e4, 1e-7]], ids=str)
def test_edge_values_as_torch_has_them(lanes, values, dtype):
    """Values and the order of equal ones, which the gradient shows."""
    features = torch.tensor(values, dtype=dtype)[None, :, None]
    table = torch.tensor([[0.5, 0.375, 0.125]])
    arguments = (torch.tensor([3]), table, torch.tensor([0]), torch.ones(1, 1, dtype=dtype))
    expected = run(features, *arguments, impl="torch")
    for actual, want in zip(run(features, *arguments, impl="triton"), expected, strict=True):
        torch.testing.assert_close(actual, want, equal_nan=True)


def test_padding_gets_no_gradient_and_no_say(lanes):
    features, lengths, table, rows, upstream = problem(3, 7, 5)
    upstream[0] = math.inf
    hostile = torch.where(features.isnan(), math.inf, features)
    for x in (features, hostile):
        pooled, gradient, _ = run(x, lengths, table, rows, upstream, impl="triton")
        assert pooled.isfinite().all()
        beyond = torch.arange(7) >= lengths[:, None]
        assert torch.equal(gradient[beyond], torch.zeros(int(beyond.sum()), 5))


@pytest.mark.parametrize("kind", ["transposed", "sliced", "columns"])
def test_strides_do_not_matter(lanes, kind):
    features, lengths, table, rows, upstream = problem(3, 6, 8)
    strided = {
        "transposed": lambda: features.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": lambda: torch.cat([features, features], 2)[:, :, :8],
        "columns": lambda: features.transpose(1, 2).contiguous().transpose(1, 2),
    }[kind]()
    assert not strided.is_contiguous()
    lengths32, rows32 = lengths.int(), rows.int()
    for left, right in zip(
        run(features, lengths, table, rows, upstream, impl="triton"),
        run(strided, lengths32, table, rows32, upstream, impl="triton"),
        strict=True,
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("axis", ["sample", "position"])
def test_offsets_beyond_two_to_the_31(lanes, axis):
    expect_wide_pooling("cpu", axis)


def test_table_in_half_precision():
    features, lengths, table, rows, upstream = problem(3, 5, 8, torch.bfloat16)
    table = table.bfloat16()
    expected = pool_truth(features, lengths, table, rows, upstream)
    results = run(features, lengths, table, rows, upstream, impl="triton")
    assert results[2].dtype == torch.bfloat16
    for actual, want in zip(results, expected, strict=True):
        close(actual, want, torch.bfloat16)


def test_every_row_of_the_table_sums_its_samples():
    """More samples than one step of the reduction takes, and rows that nobody uses."""
    sums = torch.arange(210.0).view(70, 3)
    rows = torch.arange(70) % 3
    gradient = torch.empty(5, 3)
    reduce_rows[5, 1](sums, rows, gradient, 70, 3, SAMPLES=64, POSITIONS=4)
    expected = torch.zeros(5, 3).index_add_(0, rows, sums)
    assert torch.equal(gradient, expected)


def test_what_triton_does_not_cover():
    features, lengths, table, rows, _ = problem(2, 513, 2)
    with pytest.raises(ValueError, match="K = 513 positions, above 512"):
        gpo_pool(features, lengths, table, rows, impl="triton")
    features, lengths, table, rows, _ = problem(2, 3, 2, torch.float64)
    with pytest.raises(ValueError, match="float64 is computed by torch alone"):
        gpo_pool(features, lengths, table, rows, impl="triton")
