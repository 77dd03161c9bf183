"""How the kernels are used: compiled, under autocast, checkpointed, and which one is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.kernels.test_gpo import problem, run
from tests.kernels.test_hardest import mining_problem
from vse_kernels import dispatch, gpo_pool, hardest_negatives
from vse_kernels.checks import values_are_checked

IMPLS = [
    "torch",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter"
        ),
    ),
]


@pytest.mark.parametrize("impl", IMPLS)
def test_pooling_compiles_as_one_graph(impl):
    features, lengths, table, rows, upstream = problem(3, 5, 4)

    def step(x, w):
        return gpo_pool(x * 2, lengths, w.softmax(1), rows, impl=impl).sin()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        x, w = features.clone().requires_grad_(), table.clone().requires_grad_()
        pooled = function(x, w)
        pooled.backward(upstream)
        results.append((pooled.detach(), x.grad, w.grad))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)
    with torch.no_grad():
        torch.testing.assert_close(compiled(features, table), results[0][0])


@pytest.mark.parametrize("impl", IMPLS)
def test_mining_compiles_as_one_graph(impl):
    given = mining_problem(9, 7, 4, 2)
    compiled = torch.compile(
        lambda *a: hardest_negatives(*a, impl=impl), fullgraph=True, backend="aot_eager"
    )
    for actual, want in zip(compiled(*given), hardest_negatives(*given), strict=True):
        assert torch.equal(actual, want)


@pytest.mark.parametrize("impl", IMPLS)
def test_operators_pass_torchs_own_checks(impl):
    """Schema, fake tensors and strides of the operators that torch.compile sees."""
    features, lengths, table, rows, upstream = problem(3, 5, 4)
    with_triton = impl == "triton"
    forward = torch.ops.vse_kernels.gpo_forward.default
    for keep in (True, False):
        torch.library.opcheck(forward, (features, lengths, table, rows, with_triton, keep))
    order = forward(features, lengths, table, rows, with_triton, True)[1]
    torch.library.opcheck(
        torch.ops.vse_kernels.gpo_backward.default,
        (upstream, features, lengths, table, rows, order, with_triton),
    )
    torch.library.opcheck(
        torch.ops.vse_kernels.hardest_negatives.default,
        (*mining_problem(9, 7, 4, 2), True, with_triton),
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast(impl):
    """Half-precision features from a linear layer, float32 weights from a softmax."""
    features, lengths, table, rows, _ = problem(3, 5, 4)
    features = features.nan_to_num(0.0)
    layer = torch.nn.Linear(4, 6)
    table.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        projected = layer(features)
        pooled = gpo_pool(projected, lengths, table.softmax(1), rows, impl=impl)
    assert projected.dtype == pooled.dtype == torch.bfloat16
    pooled.float().sum().backward()
    assert table.grad.dtype == layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_checkpointing_changes_nothing(impl, reentrant):
    features, lengths, table, rows, upstream = problem(4, 6, 5)
    expected = run(features, lengths, table, rows, upstream, impl=impl)
    x, w = features.clone().requires_grad_(), table.clone().requires_grad_()
    pooled = checkpoint(
        lambda x, w: gpo_pool(x, lengths, w, rows, impl=impl), x, w, use_reentrant=reentrant
    )
    pooled.backward(upstream)
    torch.testing.assert_close(pooled.detach(), expected[0])
    assert torch.equal(x.grad, expected[1])
    assert torch.equal(w.grad, expected[2])


def test_only_what_is_asked_for_gets_a_gradient():
    features, lengths, table, rows, upstream = problem(3, 5, 4)
    w = table.clone().requires_grad_()
    gpo_pool(features, lengths, w, rows).backward(upstream)
    assert w.grad is not None
    x = features.clone().requires_grad_()
    gpo_pool(x, lengths, table, rows).backward(upstream)
    assert x.grad is not None
    assert not gpo_pool(features, lengths, table, rows).requires_grad


def test_training_keeps_one_byte_per_element():
    """What autograd saves beside its inputs: the order."""
    features, lengths, table, rows, _ = problem(3, 36, 5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gpo_pool(features.requires_grad_(), lengths, table, rows)
    known = {tensor.data_ptr() for tensor in (features, lengths, table, rows)}
    extra = sum(t.numel() * t.element_size() for t in saved if t.data_ptr() not in known)
    assert extra == features.numel()


def test_by_name_it_raises_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r'impl is "triton", .* tensors are on cpu'):
        hardest_negatives(*mining_problem(3, 3, 2, 0), impl="triton")
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    with pytest.raises(ValueError, match="triton is not installed"):
        gpo_pool(*problem(2, 3, 2)[:4], impl="triton")


class _OnDevice:
    """As much of a CUDA tensor as the choice looks at."""

    device = torch.device("cuda", 0)


def test_auto_falls_back_once_aloud(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Device", (), {"major": 7})
    )
    monkeypatch.setattr(dispatch, "_warned", set())
    with pytest.warns(RuntimeWarning, match=r"gpo_pool falls back to torch: .* capability 7\.x"):
        assert not dispatch.use_triton("gpo_pool", "auto", _OnDevice(), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not dispatch.use_triton("gpo_pool", "auto", _OnDevice(), None)


def test_values_on_a_device_are_looked_at_where_asked_for(monkeypatch):
    monkeypatch.delenv("VSE_KERNELS_CHECK", raising=False)
    assert not values_are_checked(_OnDevice())
    monkeypatch.setenv("VSE_KERNELS_CHECK", "1")
    assert values_are_checked(_OnDevice())


def test_auto_takes_triton_on_a_device_that_can(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Device", (), {"major": 9})
    )
    monkeypatch.setattr(dispatch, "_warned", set())
    assert dispatch.use_triton("gpo_pool", "auto", _OnDevice(), None)
    assert not dispatch.use_triton("gpo_pool", "torch", _OnDevice(), None)
    with pytest.warns(RuntimeWarning, match="above 256"):
        assert not dispatch.use_triton("gpo_pool", "auto", _OnDevice(), "K = 300, above 256")


def test_the_library_stands_on_torch_alone():
    """Importing and using it on CPU imports neither triton nor the rest of the project."""
    code = (
        "import sys, torch, vse_kernels as k; one = torch.ones(2, 3, 4); z = torch.zeros(2).long();"
        "k.gpo_pool(one, z + 3, torch.ones(1, 3), z);"
        "k.hardest_negatives(one[0], one[1], torch.arange(3), torch.arange(3));"
        "others = {'triton', 'vse_scale', 'vse_shards'} & {m.split('.')[0] for m in sys.modules};"
        "assert not others, others"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
