from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vse_scale.objective import cached_backward, global_hinge_loss

PAIRS = 24


class Towers(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.image = nn.Sequential(
            nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)
        )
        self.text = nn.Sequential(
            nn.Linear(3, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)
        )

    def forward(self, pair):
        images, captions = pair
        return F.normalize(self.image(images), dim=1), F.normalize(self.text(captions), dim=1)


def made(dropout):
    torch.manual_seed(0)
    model = Towers(dropout).double()
    inputs = torch.randn(PAIRS, 5).double(), torch.randn(PAIRS, 3).double()
    return model, inputs


def objective(mode):
    ids = torch.arange(PAIRS) // 2
    valid = torch.arange(PAIRS) % 7 != 3
    return partial(global_hinge_loss, ids=ids, valid=valid, mode=mode)


def split(inputs, size):
    return list(zip(*(rows.split(size) for rows in inputs), strict=True))


@pytest.mark.parametrize("mode", ["all", "hardest"])
@pytest.mark.parametrize("size", [1, 4, 7, 24])
def test_micro_batches_give_the_gradient_of_the_whole_batch(mode, size):
    model, inputs = made(dropout=0.0)
    loss = objective(mode)(*model(inputs)).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))

    found = cached_backward(split(inputs, size), model, objective(mode), torch.Tensor.backward)
    assert not found.loss.requires_grad
    assert abs(found.loss - loss).item() < 1e-10
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-10)


def test_the_second_pass_repeats_the_draws_of_the_first():
    model, inputs = made(dropout=0.5)
    parts = split(inputs, 6)

    torch.manual_seed(1)
    images, captions = (torch.cat(rows) for rows in zip(*map(model, parts), strict=True))
    after = torch.get_rng_state()
    loss = objective("hardest")(images, captions).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))

    torch.manual_seed(1)
    found = cached_backward(parts, model, objective("hardest"), torch.Tensor.backward)
    assert torch.equal(found.loss, loss.detach())
    assert torch.equal(torch.get_rng_state(), after)
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-12)


def test_only_one_micro_batch_has_a_graph_at_a_time():
    model, inputs = made(dropout=0.0)
    with_graph = []

    def encode(pair):
        embedded = model(pair)
        with_graph.append(embedded[0].requires_grad)
        return embedded

    calls = []
    cached_backward(
        split(inputs, 8),
        encode,
        objective("all"),
        lambda scalar: (calls.append(len(with_graph)), scalar.backward()),
    )
    assert with_graph == [False] * 3 + [True] * 3
    assert calls == [4, 5, 6]


def test_no_micro_batches_are_refused():
    with pytest.raises(ValueError, match="no micro-batches"):
        cached_backward([], lambda pair: pair, objective("all"), torch.Tensor.backward)
