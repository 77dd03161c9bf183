"""Pooling two 16-bit columns per register, in Triton's interpreter: numbers, not speed.

The interpreter has no inline assembly, so the networks run on both halves in turn here. That the
instructions are in the machine code is for test_compiled.py, that they sort for tests/gpu.
"""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.test_gpo import EDGES, TOLERANCE, close, problem, run, share_columns
from tests.kernels.truth import pool_truth
from vse_kernels import gpo_pool
from vse_kernels.gpo import choice, launch, packed
from vse_kernels.gpo.halves import codes_of, ranks_of
from vse_kernels.gpo.reference import Operands

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"),
    # NumPy's, of NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def packed_alone(monkeypatch):
    """No other kernel can pool."""
    for name in ("network_forward", "network_backward"):
        monkeypatch.setattr(launch, name, None)


def pool(given):
    with torch.no_grad():
        return gpo_pool(*given[:4], impl="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("samples", "positions"), [(2, 1), (2, 4), (4, 7), (4, 21), (2, 50)])
def test_values_of_every_length(packed_alone, samples, positions, dtype):
    """Lengths from one to all positions, so that samples of a launch take different networks."""
    given = problem(samples, positions, 18, dtype, seed=positions, ties=True)
    for actual, want in zip(run(*given, impl="triton"), pool_truth(*given), strict=True):
        close(actual, want, dtype)


def test_an_infinite_gradient_stays_where_it_is(packed_alone):
    """As a loss scaler meets it: ranks beyond the length have no gradient."""
    features, _, table, _, upstream = problem(2, 6, 2, torch.float16)
    lengths, rows = torch.tensor([2, 3]), torch.tensor([0, 1])
    upstream[0, 0] = torch.inf
    given = (features.nan_to_num(1.0), lengths, table, rows, upstream)
    _, of_features, of_table = run(*given, impl="triton")
    _, want_features, want_table = run(*given, impl="torch")
    torch.testing.assert_close(of_features, want_features, equal_nan=True)
    assert torch.equal(of_table.isnan(), want_table.isnan())
    assert (of_table[0, 2:] == 0).all()
    assert of_table[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_lanes_share_a_column(packed_alone, monkeypatch, lanes, dtype):
    """Lengths within the first lane, across, and all; columns beyond a warp's; ties."""
    share_columns(monkeypatch, lanes)
    given = problem(3, 2 * lanes - 1, 10, dtype, seed=lanes, ties=True)
    for actual, want in zip(run(*given, impl="triton"), pool_truth(*given), strict=True):
        close(actual, want, dtype)


@pytest.mark.parametrize(
    ("positions", "dtype"),
    [
        pytest.param(62, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(100, torch.float16, marks=pytest.mark.soak),
        pytest.param(128, torch.bfloat16, marks=pytest.mark.soak),
        pytest.param(200, torch.float16, marks=pytest.mark.soak),
        pytest.param(256, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_grids(packed_alone, positions, dtype):
    """At the sizes of a device."""
    given = problem(2, positions, 18, dtype, ties=True)
    for actual, want in zip(run(*given, impl="triton"), pool_truth(*given), strict=True):
        close(actual, want, dtype)


@pytest.mark.parametrize("wide", [False, True])
def test_codes_order_by_the_place_and_tell_the_rank(wide):
    """All pairs: the next place is above, or equal where its rank is 0 and that below has 255."""
    last = 255 if wide else 127
    place, rank = torch.meshgrid(torch.arange(last + 1), torch.arange(last + 1), indexing="ij")
    codes, ranks = torch.empty(2, place.numel(), dtype=torch.int32)
    give_codes[(1,)](place.flatten().int(), rank.flatten().int(), codes, ranks, len(codes), wide)
    assert torch.equal(ranks, (rank + 65536 * rank.flip(1)).flatten().int())
    low = (codes & 65535).to(torch.int16).view(torch.bfloat16 if wide else torch.float16)
    value = low.double().view(place.shape)
    assert not value.isnan().any()
    assert not (low.view(torch.int16) == -32768).any()
    below, above = value[:-1].amax(1), value[1:].amin(1)
    assert ((below < above) | (wide & (below == above))).all()
    assert (value.diff(dim=1) > 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("values", [*EDGES, [6e4, -6e4, 1e-7]], ids=str)
def test_edge_values(packed_alone, monkeypatch, values, lanes, dtype):
    """In one half, beside a half that must not see them."""
    if lanes > 1:
        share_columns(monkeypatch, lanes)
    features = torch.tensor(values, dtype=dtype)[None, :, None].repeat(1, 1, 4)
    features[..., 1:3] = torch.tensor([1.0, 3.0, 2.0], dtype=dtype)[:, None]
    table, zero = torch.tensor([[0.5, 0.375, 0.125]]), torch.zeros(1, dtype=torch.int64)
    given = (features, zero + 3, table, zero)
    upstream = torch.ones(1, 4, dtype=dtype)
    expected = pool_truth(*given, upstream)
    for actual, want in zip(run(*given, upstream, impl="triton"), expected, strict=True):
        wanted = want.to(actual.dtype)
        torch.testing.assert_close(actual, wanted, rtol=TOLERANCE[dtype], atol=0, equal_nan=True)


def test_a_sample_takes_the_first_network_that_holds_it(packed_alone, monkeypatch):
    """Each size at its ends, forward and backward, with values that one network for all gives."""
    given = problem(6, 8, 6, torch.bfloat16)
    given = (given[0].nan_to_num(1.0), torch.tensor([1, 2, 3, 4, 5, 8]), *given[2:])
    monkeypatch.setattr(choice, "NETWORKS", {8: (8,)})
    expected = run(*given, impl="triton")
    monkeypatch.setattr(choice, "NETWORKS", {8: (2, 4, 8)})
    taken = {}
    for name, place in (("pool_pairs", 6), ("gradients_of_pairs", 12)):
        plain = getattr(packed, name)

        def recorded(*operands, name=name, place=place, plain=plain):
            taken.setdefault(name, []).append(int(operands[place]))
            return plain(*operands)

        monkeypatch.setattr(packed, name, recorded)
    for actual, want in zip(run(*given, impl="triton"), expected, strict=True):
        assert torch.equal(actual, want)
    assert taken["pool_pairs"] == taken["gradients_of_pairs"] == [2, 2, 4, 4, 8, 8]


def test_weights_beyond_the_length_are_ignored(packed_alone):
    given = problem(2, 6, 4, torch.bfloat16)
    lengths = torch.tensor([2, 4])
    spoilt = given[2].clone()
    spoilt[:, 4:] = torch.nan
    features = given[0].nan_to_num(1.0)
    results = [pool((features, lengths, table, given[3])) for table in (given[2], spoilt)]
    assert torch.equal(*results)


def test_what_is_no_pair_takes_another_kernel(monkeypatch):
    monkeypatch.setattr(launch, "packed_forward", None)
    monkeypatch.setattr(launch, "packed_backward", None)
    given = problem(2, 3, 8, torch.float32)
    for actual, want in zip(run(*given, impl="triton"), pool_truth(*given), strict=True):
        close(actual, want, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("positions", "columns"), [(1, 1), (5, 9), (21, 3), (70, 1)])
def test_odd_widths(packed_alone, positions, columns, dtype):
    """The last pair is one column, by one lane and by two: values and both gradients."""
    given = problem(3, positions, columns, dtype, seed=positions, ties=True)
    for actual, want in zip(run(*given, impl="triton"), pool_truth(*given), strict=True):
        close(actual, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_odd_width_has_the_bits_of_the_next_even_one(packed_alone, dtype):
    """All columns but the last, at any offset and stride; the weights' gradient without it."""
    features, lengths, table, rows, upstream = problem(4, 6, 6, dtype, ties=True)
    upstream[:, 5] = 0
    features[:, :, 5] = 0
    wide = run(features, lengths, table, rows, upstream, impl="triton")
    narrow = (features[:, :, :5], lengths, table, rows, upstream[:, :5])
    pooled, of_features, of_table = run(*narrow, impl="triton")
    assert torch.equal(pooled, wide[0][:, :5])
    assert torch.equal(of_features, wide[1][:, :, :5])
    torch.testing.assert_close(of_table, wide[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e-40])
def test_the_last_column_of_an_odd_width_counts_once(packed_alone, value, dtype):
    """It is both columns of its pair, of which each takes half of its gradient."""
    features = torch.tensor([value, 1.0, -2.0], dtype=dtype)[None, :, None]
    zero = torch.zeros(1, dtype=torch.long)
    given = (features, zero + 3, torch.tensor([[0.5, 0.25, 0.25]]), zero)
    upstream = torch.full((1, 1), 3.0, dtype=dtype)
    expected = pool_truth(*given, upstream)
    for actual, want in zip(run(*given, upstream, impl="triton"), expected, strict=True):
        wanted = want.to(actual.dtype)
        torch.testing.assert_close(actual, wanted, rtol=TOLERANCE[dtype], atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["odd offset", "odd stride", "strided columns", "odd gradient"])
def test_pairs_off_their_words_are_copied(packed_alone, kind):
    """As a slice of nine columns, of a flat buffer, or of gradients in such a buffer."""
    features, lengths, table, rows, upstream = problem(2, 3, 8, torch.bfloat16)
    expected = run(features, lengths, table, rows, upstream, impl="triton")
    if kind == "odd gradient":
        upstream = torch.empty(17, dtype=torch.bfloat16)[1:].view(2, 8).copy_(upstream)
        assert upstream.data_ptr() % 4 == 2
    else:
        memory = torch.empty(2 * 3 * 16 + 1, dtype=torch.bfloat16)
        step = {"odd stride": 9, "strided columns": 16}.get(kind, 8)
        view = memory[kind == "odd offset" :].as_strided(
            (2, 3, 8), (3 * step, step, 2 if kind == "strided columns" else 1)
        )
        features = view.copy_(features)
    given = Operands(features, lengths, table, rows)
    results = (launch.forward(given), *launch.backward(upstream, given))
    for actual, want in zip(results, expected, strict=True):
        assert torch.equal(actual, want)


def test_strided_pairs(packed_alone):
    """Views of every second sample, and of positions in another order of memory."""
    features, lengths, table, rows, _ = problem(6, 5, 8, torch.float16)
    expected = pool((features, lengths, table, rows))
    transposed = features.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(pool((transposed, lengths.int(), table, rows.int())), expected)
    half = (features[::2], lengths[::2], table, rows[::2])
    assert torch.equal(pool(half), expected[::2])


def test_gpus_without_the_instructions_take_another_kernel(monkeypatch):
    features = torch.randn(2, 100, 8, dtype=torch.bfloat16)
    assert choice.packs(features)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not choice.packs(features)


@triton.jit
def give_codes(places, ranks, codes, found, COUNT: tl.constexpr, WIDE: tl.constexpr):
    """Codes of (COUNT,) places and ranks, and the ranks in them; the other half counts down."""
    at = tl.arange(0, COUNT)
    place = tl.load(places + at)
    rank = tl.load(ranks + at)
    last: tl.constexpr = 255 if WIDE else 127
    code = codes_of(place * 0x10001, rank + ((last - rank) << 16), WIDE)
    tl.store(codes + at, code)
    tl.store(found + at, ranks_of(code, place, WIDE))
