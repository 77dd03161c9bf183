"""The mining kernel in Triton's interpreter."""

from __future__ import annotations

import math
import os

import pytest
import torch

from tests.kernels.test_hardest import expect_hardest, mining_problem
from tests.kernels.truth import masked_scores
from tests.kernels.wide import expect_wide_mining
from vse_kernels import hardest_negatives
from vse_kernels.hardest.launch import LOWEST, padded

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"
)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "width", "dtype"),
    [
        (1, 1, 1, torch.float32),
        (1, 257, 5, torch.float16),
        (130, 70, 33, torch.float32),
        (300, 200, 64, torch.bfloat16),
        (63, 129, 128, torch.bfloat16),
    ],
)
def test_against_the_whole_matrix(rows, columns, width, dtype, both):
    given = mining_problem(rows, columns, width, rows, dtype)
    found = hardest_negatives(*given, columns=both, impl="triton")
    expect_hardest(found, masked_scores(*given), both)


def test_same_bits_as_torch_in_every_case_of_an_id():
    """Equal ids, negative ids on either side and both, wide ids, 32-bit ids."""
    queries, candidates, *_ = mining_problem(8, 8, 4, 0)
    ids = torch.tensor([-3, -1, 0, 1, 2**40, 2**40 + 1, -(2**40), 7])
    given = (queries, candidates, ids, ids.flip(0))
    expect_hardest(hardest_negatives(*given, impl="triton"), masked_scores(*given))
    small = ids.clamp(-9, 9)
    given = (queries, candidates, small.int(), small.int())
    expect_hardest(hardest_negatives(*given, impl="triton"), masked_scores(*given))


def test_edge_scores_as_torch_has_them():
    queries = torch.tensor([[1.0], [math.nan], [-1.0], [math.inf], [1e-40]])
    candidates = torch.tensor([[1.0], [2.0], [-3.0], [-1e-40], [0.0]])
    ids = torch.arange(5)
    expected = hardest_negatives(queries, candidates, ids, ids + 1, impl="torch")
    for actual, want in zip(
        hardest_negatives(queries, candidates, ids, ids + 1, impl="triton"), expected, strict=True
    ):
        torch.testing.assert_close(actual, want, equal_nan=True)


@pytest.mark.parametrize("largest", [2.0**-91, 2.0**-89, 1e-20, 1.0, -1.0, 1e30, 3.3e38])
def test_neighbouring_floats_are_told_apart(largest):
    """The maximum last, after its neighbour below and before its equal; the score is exact."""
    best = torch.tensor(largest)
    below = torch.nextafter(best, torch.tensor(-math.inf))
    candidates = torch.full((140, 1), float(below))
    candidates[131] = candidates[139] = best
    queries, ids = torch.ones(2, 1), torch.arange(140)
    found = hardest_negatives(queries, candidates, ids[:2] + 200, ids, impl="triton")
    assert found.row_index.tolist() == [131, 131]
    assert found.row_score.tolist() == [float(best)] * 2
    assert found.column_index.tolist() == [0] * 140
    assert torch.equal(found.column_score, candidates[:, 0])


def test_strides_do_not_matter():
    queries, candidates, *ids = mining_problem(20, 30, 8, 1)
    wide = torch.cat([queries, queries], 1)[:, :8]
    tall = candidates.T.contiguous().T
    expected = hardest_negatives(queries, candidates, *ids, impl="triton")
    for actual, want in zip(
        hardest_negatives(wide, tall, *ids, impl="triton"), expected, strict=True
    ):
        assert torch.equal(actual, want)


def test_an_operand_that_fits_is_not_copied():
    fits = torch.zeros(3, 64)
    assert padded(fits, 32) is fits
    for odd in (
        torch.zeros(3, 100)[:, :64],
        torch.zeros(64, 3).T,
        torch.zeros(200)[1:193].view(3, 64),
    ):
        copied = padded(odd, 32)
        assert copied.shape == (3, 64)
        assert copied.is_contiguous()
        assert copied.data_ptr() != odd.data_ptr()
    assert padded(torch.ones(2, 33), 32).sum() == 66
    assert padded(torch.ones(2, 0), 32).shape == (2, 32)


def test_offsets_beyond_two_to_the_31():
    expect_wide_mining("cpu")


def test_nothing_to_mine_and_empty():
    ids = torch.zeros(3, dtype=torch.int64)
    found = hardest_negatives(torch.ones(3, 2), torch.ones(3, 2), ids, ids, impl="triton")
    assert found.row_index.tolist() == [-1, -1, -1]
    assert found.column_score.tolist() == [-math.inf] * 3
    empty = hardest_negatives(torch.ones(3, 2), torch.ones(0, 2), ids, ids[:0], impl="triton")
    assert empty.row_index.tolist() == [-1, -1, -1]
    assert empty.column_index.shape == (0,)


def test_lowest_is_minus_infinity():
    bits = torch.tensor(-math.inf).view(torch.int32)
    assert int(bits ^ ((bits >> 31) & 0x7FFFFFFF)) == LOWEST
