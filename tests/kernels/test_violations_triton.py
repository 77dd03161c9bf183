"""The kernel of all violations in Triton's interpreter, against whole matrices in float64."""

from __future__ import annotations

import os

import pytest
import torch

from vse_kernels import all_violations

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"
)
FLOATING = {torch.float32: 1e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}


def violation_problem(rows, columns, width, dtype, row_positives=1, column_positives=1, seed=0):
    """Operands of `all_violations`; some rows are padding, some positives of a row, some ids meet.

    No score lies within 1e-4 of a threshold, so that rounding changes no count.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for size, each in ((rows, row_positives), (columns, column_positives)):
        embeddings = torch.randn(size, width, generator=generator).to(dtype)
        ids = torch.randint(max(rows, columns) // 2 + 1, (size,), generator=generator)
        ids[torch.rand(size, generator=generator) < 0.1] = -1
        positive = torch.randn(size, each, generator=generator) + 1
        positive[torch.rand(size, each, generator=generator) < 0.2] = torch.inf
        sides.append([embeddings, ids, positive])
    (queries, query_ids, of_query), (candidates, candidate_ids, of_candidate) = sides
    scores = queries.double() @ candidates.double().T
    for positive, seen in ((of_query, scores), (of_candidate, scores.T)):
        for _ in range(50):
            near = ((seen[:, None] - positive[:, :, None].double() + 0.2).abs() < 1e-4).any(2)
            positive[near] += 3e-4
        assert not near.any()
    if row_positives == 1 and seed % 2:
        of_query = of_query[:, 0]
        query_ids[of_query == torch.inf] = -1  # the mark of a row's only positive
    return queries, candidates, query_ids, candidate_ids, of_query, of_candidate


def truth(
    queries, candidates, query_ids, candidate_ids, of_query, of_candidate, limits=(None,) * 2
):
    """Losses, counts and gradients by the definition, in float64."""
    queries, candidates = queries.double(), candidates.double()
    scores = queries @ candidates.T
    apart = (query_ids[:, None] != candidate_ids) & (query_ids[:, None] >= 0) & (candidate_ids >= 0)
    sides = [one.double().reshape(len(one), -1) for one in (of_query, of_candidate)]
    there = [side < torch.inf for side in sides]
    pull = torch.zeros_like(scores)
    found = []
    for which, (side, limit) in enumerate(zip(sides, limits, strict=True)):
        seen, allowed, others = (
            (scores, apart, there[1]) if which == 0 else (scores.T, apart.T, there[0])
        )
        times = others.sum(1).double()  # of each of the others, its positives
        hinge = (seen[:, None] - side[:, :, None] + 0.2).clamp_min(0) * allowed[:, None]
        hinge = hinge.masked_fill((side == torch.inf)[:, :, None], 0)
        if limit is not None:
            above = seen[:, None] > limit.double().reshape(side.shape)[:, :, None]
            hinge = hinge.masked_fill(above, 0)
        found += [(hinge * times).sum(2), ((hinge > 0) * times).sum(2)]
        counted = ((hinge > 0) * times).sum(1)
        pull += counted if which == 0 else counted.T
    return (*found, pull @ candidates, pull.T @ queries)


def expect_truth(found, wanted, tolerance):
    for name, actual, want in zip(found._fields, found, wanted, strict=True):
        scale = float(want.abs().max()) + 1
        actual = actual.reshape(want.shape).double()
        if "count" in name:
            assert torch.equal(actual, want), name
        else:
            assert float((actual - want).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize(
    ("rows", "columns", "width", "dtype", "row_positives", "column_positives"),
    [
        (1, 1, 1, torch.float32, 1, 1),
        (40, 150, 33, torch.float32, 5, 1),
        (70, 30, 64, torch.bfloat16, 1, 5),
        (150, 70, 16, torch.float16, 1, 8),
        (20, 140, 8, torch.bfloat16, 8, 1),
    ],
)
@pytest.mark.parametrize("strip", [None, 1])
def test_against_the_whole_matrix(
    monkeypatch, rows, columns, width, dtype, row_positives, column_positives, strip
):
    from vse_kernels.hardest import violations_launch

    if strip:
        monkeypatch.setattr(violations_launch, "STRIP_BYTES", strip)
    for seed in range(2):
        given = violation_problem(
            rows, columns, width, dtype, row_positives, column_positives, seed
        )
        found = all_violations(*given, 0.2, True, impl="triton")
        expect_truth(found, truth(*given), FLOATING[dtype])


@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize("limited", ["queries", "candidates", "both"])
def test_scores_above_a_limit_are_left_out(limited, positives):
    given = violation_problem(30, 50, 6, torch.float32, positives, 1)
    limits = [positive + 0.5003 for positive in given[4:]]
    limits = [
        limit if limited in (name, "both") else None
        for name, limit in zip(("queries", "candidates"), limits, strict=True)
    ]
    found = all_violations(*given, 0.2, True, *limits, impl="triton")
    assert found.row_count.sum() > 20
    expect_truth(found, truth(*given, limits), 1e-5)


def test_what_the_kernel_does_not_do_is_said_or_done_by_torch(monkeypatch):
    several = violation_problem(6, 7, 3, torch.float32, 2, 2)
    many = violation_problem(6, 7, 3, torch.float32, 9, 1)
    for given, reason in ((several, "several positives"), (many, "more than 8 positives")):
        with pytest.raises(ValueError, match=f"all_violations cannot run it here: {reason}"):
            all_violations(*given, 0.2, True, impl="triton")
        expect_truth(all_violations(*given, 0.2, True), truth(*given), 1e-5)


def test_the_same_bits_each_time_and_without_the_candidates_gradient():
    given = violation_problem(100, 90, 20, torch.float32, 2, 1)
    one = all_violations(*given, 0.2, True, impl="triton")
    other = all_violations(*given, 0.2, False, impl="triton")
    assert other.candidate_gradient is None
    for first, second in zip(one[:5], other[:5], strict=True):
        assert torch.equal(first, second)


def test_edge_scores_as_torch_has_them():
    queries = torch.tensor([[1.0], [torch.nan], [-1.0], [torch.inf], [1e-40]])
    candidates = torch.tensor([[1.0], [2.0], [-3.0], [-1e-40], [4.0]])
    ids, positive = torch.arange(5), torch.tensor([0.5, 1.0, torch.inf, -1.0, 0.0])
    operands = (queries, candidates, ids, ids + 1, positive, positive, 0.2)
    expected = all_violations(*operands, impl="torch")
    found = all_violations(*operands, impl="triton")
    for actual, want in zip(found[:4], expected[:4], strict=True):
        torch.testing.assert_close(actual, want, equal_nan=True)


def test_no_rows_and_no_columns():
    given = violation_problem(3, 4, 2, torch.float32)
    for rows, columns in ((0, 4), (3, 0)):
        part = (
            given[0][:rows], given[1][:columns], given[2][:rows], given[3][:columns],
            given[4][:rows], given[5][:columns],
        )  # fmt: skip
        found = all_violations(*part, 0.2, True, impl="triton")
        assert found.row_loss.shape == given[4][:rows].shape
        assert not found.candidate_gradient.any()
        assert not found.query_gradient.any()
