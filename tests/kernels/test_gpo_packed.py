"""Pooling two 16-bit columns per register, in Triton's interpreter: numbers, not speed.

The interpreter has no inline assembly, so the networks run on both halves in turn here. That the
instructions are in the machine code is for test_compiled.py, that they sort for tests/gpu.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.kernels.test_gpo import EDGES, TOLERANCE, close, problem, run
from tests.kernels.truth import pool_truth
from vse_kernels import gpo_pool
from vse_kernels.gpo import choice, launch
from vse_kernels.gpo.halves import sorting_assembly
from vse_kernels.gpo.network import comparators

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"),
    # NumPy's, of NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def packed_alone(monkeypatch):
    """No other kernel can pool."""
    for name in ("network_forward", "sort_forward", "network_backward", "sort_backward"):
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


def test_inference_of_grids(packed_alone):
    """Above 64 positions training takes the sort across threads, for its order."""
    given = problem(2, 100, 2, torch.bfloat16, ties=True)
    close(pool(given), pool_truth(*given)[0], torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", [*EDGES, [6e4, -6e4, 1e-7]], ids=str)
def test_edge_values(packed_alone, values, dtype):
    """In one half, beside a half that must not see them."""
    features = torch.tensor(values, dtype=dtype)[None, :, None].repeat(1, 1, 4)
    features[..., 1:3] = torch.tensor([1.0, 3.0, 2.0], dtype=dtype)[:, None]
    table, zero = torch.tensor([[0.5, 0.375, 0.125]]), torch.zeros(1, dtype=torch.int64)
    given = (features, zero + 3, table, zero)
    expected = pool_truth(*given, torch.ones(1, 4))[0].to(dtype)
    torch.testing.assert_close(pool(given), expected, rtol=TOLERANCE[dtype], atol=0, equal_nan=True)


def test_a_sample_takes_the_first_network_that_holds_it(packed_alone, monkeypatch):
    """Each size at its ends: the same values from one network and from three."""
    given = problem(4, 8, 6, torch.bfloat16)
    lengths = torch.tensor([1, 2, 3, 8])
    given = (given[0].nan_to_num(1.0), lengths, *given[2:])
    monkeypatch.setattr(choice, "PACKED_SIZES", {8: (8,)})
    expected = pool(given)
    monkeypatch.setattr(choice, "PACKED_SIZES", {8: (2, 4, 8)})
    assert torch.equal(pool(given), expected)


def test_weights_beyond_the_length_are_ignored(packed_alone):
    given = problem(2, 6, 4, torch.bfloat16)
    lengths = torch.tensor([2, 4])
    spoilt = given[2].clone()
    spoilt[:, 4:] = torch.nan
    features = given[0].nan_to_num(1.0)
    results = [pool((features, lengths, table, given[3])) for table in (given[2], spoilt)]
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["odd columns", "odd offset", "odd stride", "float32"])
def test_what_is_no_pair_takes_another_kernel(monkeypatch, kind):
    monkeypatch.setattr(launch, "packed_forward", None)
    memory = torch.randn(2, 3, 9).to(torch.float32 if kind == "float32" else torch.bfloat16)
    cut = {"odd columns": slice(9), "odd offset": slice(1, 9)}.get(kind, slice(8))
    features = memory[..., cut]
    if kind == "odd offset":  # in rows of eight, so that only the start is odd
        features = torch.empty(49, dtype=torch.bfloat16)[1:].view(2, 3, 8).copy_(features)
    given = (features, torch.tensor([1, 3]), torch.rand(2, 3), torch.tensor([0, 1]))
    close(pool(given), pool_truth(*given, torch.ones(2, features.shape[2]))[0], features.dtype)


def test_strided_pairs(packed_alone):
    """Views of every second sample, and of positions in another order of memory."""
    features, lengths, table, rows, _ = problem(6, 5, 8, torch.float16)
    expected = pool((features, lengths, table, rows))
    transposed = features.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(pool((transposed, lengths.int(), table, rows.int())), expected)
    half = (features[::2], lengths[::2], table, rows[::2])
    assert torch.equal(pool(half), expected[::2])


def test_training_and_inference_agree_bitwise():
    given = problem(2, 6, 8, torch.bfloat16, ties=True)
    assert torch.equal(run(*given, impl="triton")[0], pool(given))


@pytest.mark.parametrize("size", [1, 2, 7, 36])
def test_the_assembly_sorts(size):
    """Its lines, executed one after the other on integers."""
    generator = torch.Generator().manual_seed(size)
    values = torch.randint(0, 9, (size,), generator=generator).tolist()
    registers = {f"${size + i}": value for i, value in enumerate(values)}
    text = sorting_assembly(comparators(size), size, ".NaN.bf16x2")
    for line in text.splitlines()[2:-1]:
        name, *operands = line.rstrip(";").replace(",", "").split()
        target, *sources = operands
        read = [registers[source] for source in sources]
        registers[target] = {"mov": read[0], "min": min(read), "max": max(read)}[name[:3]]
    assert [registers[f"${i}"] for i in range(size)] == sorted(values, reverse=True)
