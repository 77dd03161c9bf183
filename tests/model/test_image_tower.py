import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.model.towers.grid import compact, kept_cells, signed_power
from vse_scale.model.towers.resnet import ResNetSettings, ResNetTower

# Fractions that meet the rule's borders.
DRAWS = st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.2, 0.5, 0.75, 0.999])


def kept_by_definition(draws):
    u, *cells = draws
    kept = [not (u > 0.2 and cell < 0.2 * u) for cell in cells]
    return kept if any(kept) else [cell == max(cells) for cell in cells]


@settings(max_examples=100, deadline=None)
@given(
    draws=st.integers(1, 6).flatmap(
        lambda cells: st.lists(st.lists(DRAWS, min_size=cells + 1, max_size=cells + 1), min_size=1)
    )
)
def test_size_augmentation_follows_its_definition(draws):
    # float64, so that a product at the border is the definition's.
    table = torch.tensor(draws, dtype=torch.float64)
    keep = kept_cells(table)
    assert keep.tolist() == [kept_by_definition(row) for row in draws]

    grid = torch.arange(keep.numel() * 2.0).view(*keep.shape, 2)
    front, lengths = compact(grid, keep)
    for cells, length, kept, original in zip(front, lengths, keep, grid, strict=True):
        assert torch.equal(cells[:length], original[kept])


def test_cells_are_dropped_at_the_published_rate():
    draws = torch.rand(4000, 145, generator=torch.Generator().manual_seed(0))
    dropped = 1 - kept_cells(draws).double().mean(1)
    spared = draws[:, 0] <= 0.2
    assert not dropped[spared].any()
    # The mean of 0.2 u over u in (0.2, 1) is 0.12.
    assert dropped[~spared].mean().item() == pytest.approx(0.12, abs=0.002)
    assert dropped[draws[:, 0] > 0.9].mean().item() == pytest.approx(0.19, abs=0.005)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return ResNetTower(ResNetSettings(backbone="tiny", size=32), embed_dim=8)


def test_cells_are_those_of_the_grid(tower):
    assert tower.cells == 16
    assert tower.backbone.cells(33) == 25


def test_only_training_drops_cells(tower):
    pixels, draws = torch.randn(3, 3, 32, 32), torch.rand(3, 17)
    draws[:, 0] = 0.999
    draws[:, 1:4] = 0.0
    whole = tower(pixels)
    assert not torch.allclose(tower(pixels, draws=draws), whole)
    tower.eval()
    torch.testing.assert_close(tower(pixels, draws=draws), whole)


def test_the_configuration_turns_dropping_off():
    torch.manual_seed(0)
    tower = ResNetTower(ResNetSettings(backbone="tiny", size=32, drop_cells=False), embed_dim=8)
    pixels, draws = torch.randn(2, 3, 32, 32), torch.zeros(2, 17)
    draws[:, 0] = 0.999
    assert torch.equal(tower(pixels, draws=draws), tower(pixels))


def test_dropped_cells_reach_neither_output_nor_gradient(tower):
    draws = torch.full((1, 17), 0.9)
    draws[0, 1] = 0.0
    grid = torch.randn(1, 128, 4, 4, requires_grad=True)
    tower.backbone.forward = lambda pixels, trained_stages: grid
    tower(torch.empty(1, 3, 32, 32), draws=draws).sum().backward()
    assert not grid.grad[0, :, 0, 0].any()
    assert (grid.grad[0].flatten(1)[:, 1:] != 0).any(0).all()


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 2.0])
def test_a_power_keeps_the_sign_and_has_a_gradient_at_zero(power):
    values = [-4.0, -0.3, 0.0, 0.2, 1.0, 9.0]
    expected = torch.tensor([math.copysign(abs(value) ** power, value) for value in values])
    features = torch.tensor(values)
    torch.testing.assert_close(signed_power(features, power), expected)
    assert features.tolist() == torch.tensor(values).tolist()  # not in place
    features.requires_grad_()
    found = signed_power(features, power)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    slopes = torch.tensor([power * abs(value or 1.0) ** (power - 1) for value in values])
    slopes[2] = 1.0 if power == 1 else 0.0
    torch.testing.assert_close(features.grad, slopes)


@pytest.mark.parametrize("pool", ["mean", "gpo"])
def test_the_projection_sees_the_power_of_pixels_and_of_kept_features(pool):
    torch.manual_seed(0)
    settings = ResNetSettings(backbone="tiny", size=32, drop_cells=False, power=0.5)
    tower = ResNetTower(settings, 8, pool).eval()
    pixels = torch.randn(2, 3, 32, 32)
    features = tower.features(pixels)
    root = features.sign() * features.abs().sqrt()
    expected = tower.pool(tower.projection(root), torch.full((2,), tower.cells))
    torch.testing.assert_close(tower(pixels), expected)
    torch.testing.assert_close(tower(features), expected)


def gradients_of(tower, pixels, stages=None):
    tower.zero_grad()
    tower(pixels, None, None, stages).square().sum().backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_frozen_stages_get_no_gradient_and_all_else_the_same(tower, stages):
    pixels = torch.randn(2, 3, 32, 32)
    everything = gradients_of(tower, pixels)
    some = gradients_of(tower, pixels, stages)
    frozen = {id(p) for stage in tower.backbone.parameter_stages()[: 3 - stages] for p in stage}
    assert some.keys() == {name for name, p in tower.named_parameters() if id(p) not in frozen}
    assert all(torch.equal(some[name], everything[name]) for name in some)


def test_recomputed_activations_give_the_same_gradients(tower):
    pixels = torch.randn(2, 3, 32, 32)
    kept = gradients_of(tower, pixels)
    tower.backbone.recompute = True
    recomputed = gradients_of(tower, pixels)
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
