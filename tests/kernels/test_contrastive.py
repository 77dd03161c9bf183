"""Sums and weights of contrastive losses, by torch and by the kernel, against float64 matrices."""

from __future__ import annotations

import os

import pytest
import torch

from vse_kernels import sigmoid_weights, softmax_sums, softmax_weights

INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"
)
IMPLS = ["torch", pytest.param("triton", marks=INTERPRETED)]
# Of sums in float32; of the weights' bits in a gradient, of which the interpreter cuts the last
# of bfloat16; and the least weight of float16, which is stored 256 times as large.
ROUNDING = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}
STORED = {torch.float64: 0, torch.float32: 0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
LEAST = 2.0**-32


def contrast_problem(rows, columns, width, dtype, counted=False, seed=0, unit=True):
    """Embeddings, ids and times; some rows are equal, some ids meet, some are padding."""
    generator = torch.Generator().manual_seed(seed)
    given = []
    for size in (rows, columns):
        embeddings = torch.randn(size, width, generator=generator, dtype=torch.float64)
        embeddings[size // 2] = embeddings[0]
        embeddings /= embeddings.norm(dim=1, keepdim=True) if unit else 1
        ids = torch.randint(max(rows, columns) // 2 + 1, (size,), generator=generator)
        ids[torch.rand(size, generator=generator) < 0.1] = -1
        given.append((embeddings.to(dtype), ids))
    (queries, query_ids), (candidates, candidate_ids) = given
    times = torch.randint(0, 6, (rows,), generator=generator).float() if counted else None
    return (queries, candidates, query_ids, candidate_ids), times


def negatives(queries, candidates, query_ids, candidate_ids):
    """Scores in float64, -inf of pairs that are no negatives."""
    apart = (query_ids[:, None] != candidate_ids) & (query_ids[:, None] >= 0) & (candidate_ids >= 0)
    return (queries.double() @ candidates.double().T).masked_fill(~apart, -torch.inf)


def counts(times, rows):
    return torch.ones(rows, 1).double() if times is None else times.double()[:, None]


def true_sums(given, times, scale):
    """The largest scores, and the logarithms of both sides' sums."""
    scores = negatives(*given)
    counted = scores * scale + counts(times, len(scores)).log()
    by_row, by_column = (scores * scale).logsumexp(1), counted.logsumexp(0)
    return scores.amax(1), by_row, scores.amax(0), by_column


def true_weights(given, scores, weight):
    """Row product and both gradients, of weights in float64."""
    queries, candidates = given[0].double(), given[1].double()
    product = (weight * scores.masked_fill(scores == -torch.inf, 0)).sum(1)
    return product, weight @ candidates, weight.T @ queries


def softmax_problem(given, times, scale):
    """Shifts of both sides as of an objective whose pairs have logit 0; and the true weights."""
    scores = negatives(*given)
    _, by_row, _, by_column = true_sums(given, times, scale)
    shifts = [-torch.logaddexp(side, torch.zeros(())) for side in (by_row, by_column)]
    weight = (scores * scale + shifts[0][:, None]).exp()
    weight += counts(times, len(scores)) * (scores * scale + shifts[1]).exp()
    return shifts, scores, weight


def expect_sums(found, wanted, scale, tolerance):
    """Logarithms to `tolerance`, of scores to `tolerance` times the scale."""
    top, by_row, column_top, by_column = wanted
    found = [side.cpu().double() for side in found]
    torch.testing.assert_close(found[0], top, rtol=0, atol=tolerance)
    torch.testing.assert_close(found[2], column_top, rtol=0, atol=tolerance)
    for tops, sums, want in ((found[0], found[1], by_row), (found[2], found[3], by_column)):
        actual = torch.where(tops == -torch.inf, -torch.inf, tops * scale + sums.log())
        torch.testing.assert_close(actual, want, rtol=0, atol=(2 + scale) * tolerance)


def expect_weights(found, wanted, given, weight, scale, impl):
    """`ROUNDING` of the scores and sums, and `STORED` of each weight in the gradients."""
    dtype = given[0].dtype
    relative = (4 + scale) * ROUNDING[dtype]  # a logit's rounding is its weight's relative one
    queries, candidates = given[0].abs().double(), given[1].abs().double()
    changed = weight * (relative + STORED[dtype] * (impl == "triton"))
    changed += LEAST * (dtype == torch.float16)
    room = (weight.sum(1) * relative, changed @ candidates, changed.T @ queries)
    for actual, want, most in zip(found[:3], wanted, room, strict=True):
        assert ((actual.cpu().double() - want).abs() <= most + 1e-30).all()


CASES = [
    (1, 1, 1, torch.float32, False),
    (40, 150, 33, torch.float32, True),
    (260, 30, 64, torch.bfloat16, False),
    (150, 170, 16, torch.float16, True),
    (20, 140, 8, torch.bfloat16, True),
    (30, 40, 5, torch.float64, True),
]


@pytest.fixture(params=IMPLS)
def impl(request):
    return request.param


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(("rows", "columns", "width", "dtype", "counted"), CASES)
def test_softmaxes_are_those_of_the_whole_matrix(
    monkeypatch, rows, columns, width, dtype, counted, scale, impl
):
    if impl == "triton":
        if dtype == torch.float64:
            pytest.skip("float64 is computed by torch alone")
        in_strips(monkeypatch, rows)
    given, times = contrast_problem(rows, columns, width, dtype, counted)
    sums = softmax_sums(*given, scale, times, impl=impl)
    expect_sums(sums, true_sums(given, times, scale), scale, ROUNDING[dtype])
    shifts, scores, weight = softmax_problem(given, times, scale)
    found = softmax_weights(*given, scale, *shifts, times, impl=impl)
    expect_weights(found, true_weights(given, scores, weight), given, weight, scale, impl)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, 3.0), (1.0, -60.0)])
@pytest.mark.parametrize(("rows", "columns", "width", "dtype", "counted"), CASES)
def test_sigmoids_are_those_of_the_whole_matrix(
    monkeypatch, rows, columns, width, dtype, counted, scale, bias, impl
):
    if impl == "triton":
        if dtype == torch.float64:
            pytest.skip("float64 is computed by torch alone")
        in_strips(monkeypatch, rows)
    given, times = contrast_problem(rows, columns, width, dtype, counted)
    found = sigmoid_weights(*given, scale, bias, times, impl=impl)
    scores = negatives(*given)
    logits, each = scores * scale + bias, counts(times, rows)
    weight, loss = logits.sigmoid() * each, torch.nn.functional.softplus(logits) * each
    tolerance, size = ROUNDING[dtype], scale + abs(bias)
    expect_weights(found, true_weights(given, scores, weight), given, weight, size, impl)
    for actual, want in ((found.row_loss, loss.sum(1)), (found.row_weight, weight.sum(1))):
        torch.testing.assert_close(actual.double(), want, rtol=(4 + size) * tolerance, atol=1e-35)
    for actual, want in ((found.row_top, scores.amax(1)), (found.column_top, scores.amax(0))):
        torch.testing.assert_close(actual.double(), want, rtol=0, atol=tolerance)


def in_strips(monkeypatch, rows):
    """The smallest strips, of one tile's rows, where there are more rows than that."""
    from vse_kernels.contrastive import launch

    for name in ("STRIP_BYTES", "SUM_BYTES"):
        monkeypatch.setattr(launch, name, rows)


def test_no_exponential_overflows(impl):
    """Logits of 20,000 and of -20,000 side by side, whose sums are those of the largest alone."""
    given, _ = contrast_problem(30, 40, 16, torch.float32, unit=False)
    scale = 1000.0
    sums = softmax_sums(*given, scale, impl=impl)
    assert all(side.isfinite().sum() > 20 for side in sums)
    expect_sums(sums, true_sums(given, None, scale), scale, 1e-5)
    shifts, _, weight = softmax_problem(given, None, scale)
    found = softmax_weights(*given, scale, *shifts, impl=impl)
    assert all(side.isfinite().all() for side in found[:3])
    assert (found.query_gradient.abs().sum(1) > 0).eq(weight.sum(1) > 1e-30).all()


def test_what_is_not_a_number_shows(impl):
    given, _ = contrast_problem(9, 9, 4, torch.float32)
    ids = torch.arange(9)
    given = (given[0].index_fill(0, torch.tensor(3), torch.nan), given[1], ids, ids)
    sums = softmax_sums(*given, 2.0, impl=impl)
    assert sums.row_sum.isnan().tolist() == [row == 3 for row in range(9)]
    assert sums.column_sum.isnan().tolist() == [column != 3 for column in range(9)]
    found = sigmoid_weights(*given, 2.0, 0.0, impl=impl)
    for side in (found.row_loss, found.row_weight, found.row_product):
        assert side.isnan().tolist() == [row == 3 for row in range(9)]


def test_a_gradient_that_is_not_wanted(impl):
    given, times = contrast_problem(12, 20, 4, torch.float32, counted=True)
    both = sigmoid_weights(*given, 3.0, 1.0, times, impl=impl)
    one = sigmoid_weights(*given, 3.0, 1.0, times, query_gradient=False, impl=impl)
    assert one.query_gradient is None
    assert torch.equal(one.candidate_gradient, both.candidate_gradient)
    shifts, *_ = softmax_problem(given, times, 3.0)
    found = softmax_weights(*given, 3.0, *shifts, times, candidate_gradient=False, impl=impl)
    assert found.candidate_gradient is None
    assert found.query_gradient.any()


def test_no_rows_and_no_columns(impl):
    given, _ = contrast_problem(3, 4, 2, torch.float32)
    for rows, columns in ((0, 4), (3, 0)):
        part = (given[0][:rows], given[1][:columns], given[2][:rows], given[3][:columns])
        sums = softmax_sums(*part, 1.0, impl=impl)
        assert (sums.row_top == -torch.inf).all()
        assert not sums.column_sum.any()
        found = sigmoid_weights(*part, 1.0, 0.0, impl=impl)
        assert not found.candidate_gradient.any()
        assert not found.query_gradient.any()


def test_operands_that_do_not_fit_are_named():
    given, _ = contrast_problem(3, 4, 2, torch.float32)
    with pytest.raises(ValueError, match="query_times has shape"):
        softmax_sums(*given, 1.0, torch.ones(4))
    with pytest.raises(ValueError, match="candidate_shift has shape"):
        softmax_weights(*given, 1.0, torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="scale has shape"):
        sigmoid_weights(*given, torch.ones(2), 0.0)
    with pytest.raises(ValueError, match="softmax_sums cannot run it here: float64"):
        softmax_sums(given[0].double(), given[1].double(), *given[2:], 1.0, impl="triton")
