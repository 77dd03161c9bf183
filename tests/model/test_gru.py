import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vse_scale.model.pooling.gru import BidirectionalGRU


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 34), steps=st.integers(1, 9), sizes=st.sampled_from([(3, 5), (32, 32)]))
def test_values_and_gradients_are_those_of_torch(rows, steps, sizes):
    torch.manual_seed(rows * 100 + steps)
    gru = BidirectionalGRU(*sizes).double()
    inputs = torch.randn(rows, steps, sizes[0], dtype=torch.float64)
    arriving = torch.randn(2, rows, steps, sizes[1], dtype=torch.float64)
    kept = arriving.clone()
    states = gru(inputs)
    found = torch.autograd.grad(states, list(gru.parameters()), arriving)
    assert torch.equal(arriving, kept)

    expected_states = torch.stack(nn.GRU.forward(gru, inputs)[0].chunk(2, dim=-1))
    expected = torch.autograd.grad(expected_states, list(gru.parameters()), arriving)
    torch.testing.assert_close(states, expected_states, rtol=0, atol=1e-12)
    for grad, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-11, atol=1e-11)


def test_names_are_those_of_torch():
    ours, theirs = BidirectionalGRU(4, 6), nn.GRU(4, 6, bidirectional=True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_a_second_derivative_is_refused_not_wrong():
    gru = BidirectionalGRU(3, 4)
    (grad,) = torch.autograd.grad(
        gru(torch.randn(2, 5, 3)).square().sum(), [gru.weight_hh_l0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
