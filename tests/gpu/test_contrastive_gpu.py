"""The contrastive losses' kernel on a device."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_contrastive import (
    ROUNDING,
    contrast_problem,
    counts,
    expect_sums,
    expect_weights,
    negatives,
    softmax_problem,
    true_sums,
    true_weights,
)
from vse_kernels import sigmoid_weights, softmax_sums, softmax_weights

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def to(device, *tensors):
    return [None if one is None else one.to(device) for one in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("counted", "width"), [(False, 64), (True, 100)])
def test_softmaxes_against_the_whole_matrix(device, scaled, dtype, counted, width):
    rows, columns = scaled((3001, 2049), (140, 70))
    given, times = contrast_problem(rows, columns, width, dtype, counted)
    *there, those = to(device, *given, times)
    scale = 60.0
    sums = softmax_sums(*there, scale, those, impl="triton")
    expect_sums(sums, true_sums(given, times, scale), scale, ROUNDING[dtype])
    shifts, scores, weight = softmax_problem(given, times, scale)
    calls = [
        softmax_weights(*there, scale, *to(device, *shifts), those, impl="triton") for _ in "ab"
    ]
    assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))
    wanted = true_weights(given, scores, weight)
    expect_weights(calls[0], wanted, given, weight, scale, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counted", [False, True])
def test_sigmoids_against_the_whole_matrix(device, scaled, dtype, counted):
    rows, columns = scaled((1500, 2100), (40, 70))
    given, times = contrast_problem(rows, columns, 48, dtype, counted)
    *there, those = to(device, *given, times)
    found = sigmoid_weights(*there, 10.0, -10.0, those, impl="triton")
    scores = negatives(*given)
    logits, each = scores * 10 - 10, counts(times, rows)
    weight, loss = logits.sigmoid() * each, torch.nn.functional.softplus(logits) * each
    expect_weights(found, true_weights(given, scores, weight), given, weight, 20, "triton")
    for actual, want in ((found.row_loss, loss.sum(1)), (found.row_weight, weight.sum(1))):
        rounding = 24 * ROUNDING[dtype]
        torch.testing.assert_close(actual.cpu().double(), want, rtol=rounding, atol=1e-35)


def test_no_matrix_is_stored_and_nothing_waits(device, on_device):
    """The matrix would take 16 GiB; there are 256 MiB of weights, and gradients of 32 MiB each."""
    size = 65536
    rows = torch.nn.functional.normalize(torch.randn(size, 128, device=device)).bfloat16()
    ids, shift = torch.arange(size, device=device), torch.full((size,), -20.0, device=device)
    scale = torch.tensor(20.0, dtype=torch.float64)

    def step():
        softmax_sums(rows, rows, ids, ids, scale)
        softmax_weights(rows, rows, ids, ids, scale, shift, shift)
        sigmoid_weights(rows, rows, ids, ids, scale, torch.tensor(-10.0))

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 500 * 2**20
