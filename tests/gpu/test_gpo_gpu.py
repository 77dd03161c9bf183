"""Pooling on a device: every range of K against float64, streams, graphs, memory, wide offsets."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.kernels.test_gpo import EDGES, POSITIONS, TOLERANCE, close, problem, run
from tests.kernels.truth import pool_truth, published_pool
from tests.kernels.wide import expect_wide_pooling
from vse_kernels import gpo_pool
from vse_kernels.gpo import choice

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on(device, given):
    return tuple(tensor.to(device) for tensor in given)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [*POSITIONS, 324, 512])
def test_values_and_gradients(device, scaled, positions, dtype, ties):
    if positions > scaled(512, 8):
        pytest.skip("too slow to rehearse")
    samples, columns = scaled((33, 1025), (2, 5))
    given = on(device, problem(samples, positions, columns, dtype, seed=positions, ties=ties))
    results = run(*given, impl="triton")
    for actual, want in zip(results, pool_truth(*given), strict=True):
        close(actual, want, dtype)
    again = run(*given, impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(
    "positions", [1, 4, 7, 16, 20, 31, 36, 47, 50, 64, 100, 128, 200, 256, 324]
)
def test_pairs_of_columns(device, scaled, monkeypatch, positions, dtype):
    """Two columns a register, whose assembly runs on a device alone; against one a register.

    Feature gradients agree bit for bit, as both kernels order alike. Edge values are in one half
    each, and samples have every length.
    """
    positions = min(positions, scaled(512, 7))
    samples, columns = scaled((260, 1026), (4, 18))
    features, _, table, rows, upstream = problem(samples, positions, columns, dtype, ties=True)
    features = features.nan_to_num(-0.5)
    if positions >= 3:
        for column, values in enumerate(EDGES):
            features[:, :3, 2 * column + column % 2] = torch.tensor(values).to(dtype)
    lengths = torch.arange(samples) % positions + 1
    given = on(device, (features, lengths, table, rows, upstream))
    paired = run(*given, impl="triton")
    again = run(*given, impl="triton")
    with torch.no_grad():
        inferred = gpo_pool(*given[:4], impl="triton")
    with monkeypatch.context() as patch:
        patch.setattr(choice, "packs", lambda *given, **options: False)
        single = run(*given, impl="triton")
    for left, right in zip(paired, again, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    scale = TOLERANCE[dtype]
    for pooled in (paired[0], inferred):
        torch.testing.assert_close(pooled, single[0], rtol=scale, atol=scale, equal_nan=True)
    # The interpreter cuts off where a device rounds to bfloat16.
    step = scaled(0, 2**-7)
    torch.testing.assert_close(paired[1], single[1], rtol=step, atol=0, equal_nan=True)
    torch.testing.assert_close(paired[2], single[2], rtol=1e-4, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("positions", [4, 513])
def test_torch_path(device, scaled, positions):
    """The fall-back above K = 512, and by name below it."""
    samples, columns = scaled((9, 130), (2, 5))
    given = problem(samples, positions, columns, seed=positions, ties=True)
    for actual, want in zip(run(*on(device, given), impl="torch"), pool_truth(*given), strict=True):
        close(actual.cpu(), want, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [3, 100])
@pytest.mark.parametrize("values", EDGES, ids=str)
def test_edge_values(device, scaled, values, positions, dtype):
    """Values, and the order of equal ones; a device has its own NaN, minima and denormals."""
    positions = min(positions, scaled(256, 8))
    features = torch.zeros(1, positions, 1, dtype=dtype)
    features[0, :3, 0] = torch.tensor(values)
    table = torch.linspace(1, 0.25, positions)[None]
    zero, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, 1, dtype=dtype)
    given = on(device, (features, torch.full_like(zero, positions), table, zero, one))
    # Some steps between denormals; the interpreter takes those of bfloat16 for zero.
    steps = 4 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for actual, want in zip(run(*given, impl="triton"), pool_truth(*given), strict=True):
        torch.testing.assert_close(
            actual, want.to(actual.dtype), rtol=TOLERANCE[dtype], atol=steps, equal_nan=True
        )


@pytest.mark.parametrize("positions", [5, 70])
def test_checkpointed_under_autocast(device, scaled, positions):
    """Half-precision features from a linear layer; recomputed in backward, the same bits."""
    positions = min(positions, scaled(256, 8))
    features, lengths, table, rows, _ = on(device, problem(4, positions, 16))
    features = features.nan_to_num(0.0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 24, device=device)

    def step(x, w):
        with torch.autocast(device, torch.bfloat16):
            return gpo_pool(layer(x), lengths, w.softmax(1), rows, impl="triton")

    results = []
    for pool in (step, lambda x, w: checkpoint(step, x, w, use_reentrant=False)):
        x, w = features.clone().requires_grad_(), table.clone().requires_grad_()
        pooled = pool(x, w)
        assert pooled.dtype == torch.bfloat16
        results.append((pooled.detach(), *torch.autograd.grad(pooled.float().sum(), (x, w))))
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_a_length_out_of_range_is_found_where_asked_for(device, on_device, monkeypatch):
    features, lengths, table, rows, _ = on(device, problem(4, 5, 16))
    lengths[2] = 6
    monkeypatch.setenv("VSE_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match=r"lengths holds 6; .* allows 1 to 5"):
        gpo_pool(features, lengths, table, rows)


@pytest.mark.parametrize("positions", [36, 100])
def test_waits_for_nothing_and_fits_a_graph(device, on_device, positions):
    features, lengths, table, rows, upstream = on(device, problem(16, positions, 256))
    expected = run(features, lengths, table, rows, upstream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x, w = features.clone().requires_grad_(), table.clone().requires_grad_()
        torch.autograd.grad(gpo_pool(x, lengths, w, rows), (x, w), upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(gpo_pool(x, lengths, w, rows), (x, w), upstream)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        pooled = gpo_pool(x, lengths, w, rows)
        gradients = torch.autograd.grad(pooled, (x, w), upstream)
    graph.replay()
    torch.cuda.synchronize()
    for actual, want in zip((pooled.detach(), *gradients), expected, strict=True):
        assert torch.equal(actual, want)


@pytest.mark.parametrize("positions", [36, 100])
def test_under_inductor(device, on_device, positions):
    given = on(device, problem(16, positions, 256))
    expected = run(*given)
    compiled = torch.compile(gpo_pool, fullgraph=True)
    x, w = given[0].clone().requires_grad_(), given[2].clone().requires_grad_()
    pooled = compiled(x, given[1], w, given[3])
    gradients = torch.autograd.grad(pooled, (x, w), given[4])
    for actual, want in zip((pooled.detach(), *gradients), expected, strict=True):
        torch.testing.assert_close(actual, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", [36, 64, 256])
def test_an_eighth_of_the_published_memory(device, on_device, positions, dtype):
    features, lengths, table, rows, _ = on(device, problem(64, positions, 1024, dtype))
    features = features.nan_to_num(0.0).requires_grad_()
    table.requires_grad_()

    def kept(pool):
        """Bytes that wait for the backward pass, and the peak beyond the inputs on the way."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        pooled = pool()
        torch.cuda.synchronize()
        del pooled
        return torch.cuda.max_memory_allocated() - before

    ours = kept(lambda: gpo_pool(features, lengths, table, rows))
    theirs = kept(lambda: published_pool(features, lengths, table[rows].to(dtype)))
    assert ours * 8 <= theirs


@pytest.mark.parametrize("axis", ["sample", "position"])
def test_offsets_beyond_two_to_the_31(device, axis):
    expect_wide_pooling(device, axis)
