"""States of captions that are held, and channels that training leaves out.

Public reports: vinnylarouge/jevlike#2 (a frozen encoder encoded the same texts in every batch: 33
minutes for what 37 seconds do), tdrussell/diffusion-pipe#497 (embeddings that were kept were those
of another encoder, without a word) and pytorch/pytorch#77081 (`Dropout2d` came to take an input of
three dimensions for one image, and left out other values).
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import ChannelDropout
from vse_scale.model.towers.held import HeldStates
from vse_scale.model.towers.resnet import ResNetSettings, ResNetTower

IDS = torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0], [5, 6, 0, 0], [5, 6, 7, 0]])
LENGTHS = torch.tensor([3, 1, 2, 3])


def held() -> HeldStates:
    """Captions whose states are 10 x token + place, so that each is told by its values."""
    one = HeldStates(IDS, LENGTHS, width=2, device=torch.device("cpu"))
    for start in range(0, len(one.lengths), 2):
        ids = one.token_ids[start : start + 2]
        values = (10 * ids + torch.arange(4))[..., None].expand(-1, -1, 2).float()
        one.fill(start, values)
    return one


def test_a_copy_of_a_tower_holds_no_states_of_its_own() -> None:
    """Of averaged weights, or of stage 3's whole ones: they may be larger than all else."""
    tower = torch.nn.Linear(2, 2)
    tower.held = held()
    assert copy.deepcopy(tower).held is tower.held


def test_a_caption_finds_its_own_states_at_any_width_of_batch() -> None:
    one = held()
    assert one.lengths.tolist() == [1, 2, 3]  # each caption once
    assert one.states.shape == (6, 2)
    found = one.find(torch.tensor([[5, 6, 0, 0, 0], [5, 6, 7, 0, 0]]), torch.tensor([2, 3]))
    assert found is not None
    assert found.dtype == torch.float32
    assert found[0, :2, 0].tolist() == [50, 61]
    assert found[1, :3, 1].tolist() == [50, 61, 72]


@pytest.mark.parametrize(
    ("ids", "length"), [([5, 7, 0], 2), ([5, 6, 7], 2 + 2), ([6, 0, 0], 1), ([5, 6, 0], 3)]
)
def test_another_caption_is_not_found(ids: list[int], length: int) -> None:
    row = torch.tensor([ids + [0] * (length - 3)])
    assert held().find(row, torch.tensor([length])) is None


@pytest.mark.parametrize("name", ["mean", "max", "gpo", "first"])
def test_pooling_of_a_linear_layer_is_that_of_its_outputs(name: str) -> None:
    torch.manual_seed(0)
    pool, linear, seen = make_pool(name), nn.Linear(6, 4), []
    linear.register_forward_hook(lambda _, given, __: seen.append(given[0].dim()))
    vectors, lengths = torch.randn(3, 5, 6), torch.tensor([5, 1, 3])
    torch.testing.assert_close(
        pool.of_linear(linear, vectors, lengths), pool(linear(vectors), lengths)
    )
    assert seen[0] == (2 if name in ("mean", "first") else 3)


def test_a_channel_is_left_out_of_all_cells_of_a_sample() -> None:
    torch.manual_seed(0)
    drop, ones = ChannelDropout(0.6), torch.ones(200, 7, 50)
    kept = drop(ones)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    # The rest is raised by 1 / (1 - 0.6), so that the mean stays.
    assert set(kept.flatten().tolist()) == {0.0, 2.5}
    assert kept.mean() == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(drop.eval()(ones), ones)


def test_without_a_share_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ChannelDropout(0.0)(torch.ones(2, 3, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_a_tower_leaves_channels_out_in_training_alone() -> None:
    torch.manual_seed(0)
    settings = ResNetSettings(backbone="tiny", size=32, frozen=True, drop_channels=0.5)
    tower = ResNetTower(settings, 8, "mean")
    features = torch.randn(4, 4, tower.backbone.channels)
    assert not torch.equal(tower(features), tower(features))
    tower.train(False)
    assert torch.equal(tower(features), tower(features))
