from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import nn

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.model.towers.regions import (
    RegionSettings,
    RegionTower,
    SharedBatchNorm,
    kept_regions,
)
from vse_scale.model.vse import unit_length

# What published checkpoints call our names. Their second BatchNorm is never used.
PUBLISHED_NAMES = {
    "fc.": "projection.",
    "mlp.layers.0.": "hidden.",
    "mlp.layers.1.": "output.",
    "mlp.bns.0.": "norm.",
    "gpool.": "pool.",
}


def made(channels, embed_dim):
    config = RegionSettings(backbone="regions", region_channels=channels)
    return RegionTower(config, embed_dim)


@pytest.fixture
def published(shared):
    arrays = np.load(shared / "reference" / "region_head.npz")
    values = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    weights = {}
    for key, value in values.items():
        for theirs, ours in PUBLISHED_NAMES.items():
            if key.startswith(f"param.{theirs}"):
                weights[ours + key.removeprefix(f"param.{theirs}")] = value
    head = made(40, 32).double()
    head.load_state_dict(weights)
    return head, values


def test_evaluation_is_the_published_one(published):
    head, values = published
    with torch.no_grad():
        found = unit_length(head.eval()(values["features"], values["lengths"]))
    torch.testing.assert_close(found, values["eval_output"], rtol=0, atol=1e-9)


def test_training_is_the_published_one(published):
    head, values = published
    found = unit_length(head(values["features"]))
    torch.testing.assert_close(found, values["train_output"], rtol=0, atol=1e-9)


def test_padding_reaches_nothing():
    torch.manual_seed(0)
    head = made(6, 8).double()
    regions, lengths = torch.randn(3, 5, 6).double(), torch.tensor([5, 2, 3])
    results = []
    for filling in (0.0, 100.0):
        padded = regions.clone()
        padded[torch.arange(5) >= lengths[:, None]] = filling
        results.append((head(padded, lengths).detach(), head.norm.running_var.clone()))
        head.norm.reset_running_stats()
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


def test_regions_are_dropped_at_the_published_rate_and_one_stays():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 37, (3000,), generator=generator)
    keep = kept_regions(torch.rand(3000, 36, generator=generator), lengths)
    own = torch.arange(36) < lengths[:, None]
    assert not keep[~own].any()
    assert keep.any(1).all()
    assert keep[lengths > 20][own[lengths > 20]].double().mean().item() == pytest.approx(
        0.8, abs=0.005
    )
    assert kept_regions(torch.zeros(1, 4), torch.tensor([2])).tolist() == [
        [True, True, False, False]
    ]


def test_only_training_drops_regions():
    torch.manual_seed(0)
    head = made(6, 8)
    regions, draws = torch.randn(2, 5, 6), torch.full((2, 1 + 5), 0.9)
    draws[:, 2] = 0.1  # the first is a grid's
    kept = [0, 2, 3, 4]
    dropped = head(regions, None, draws)
    torch.testing.assert_close(dropped, head(regions[:, kept]))
    head.eval()
    torch.testing.assert_close(head(regions, None, draws), head(regions))


@pytest.mark.parametrize("dropped", [False, True])
def test_packed_regions_give_what_padded_ones_give_with_the_same_gradients(monkeypatch, dropped):
    torch.manual_seed(0)
    head = made(6, 8).double()
    regions, lengths = torch.randn(4, 5, 6).double(), torch.tensor([4, 2, 3, 1])
    draws = torch.rand(4, 1 + 5) if dropped else None
    arriving, results = torch.randn(4, 8).double(), []
    for least in (0, regions.numel() + 1):
        monkeypatch.setattr("vse_scale.model.towers.regions._LEAST_PACKED", least)
        head.zero_grad()
        head.norm.reset_running_stats()
        pooled = head(regions, lengths, draws)
        pooled.backward(arriving)
        statistics = (head.norm.running_mean, head.norm.running_var)
        gradients = (parameter.grad for parameter in head.parameters())
        results.append([value.detach().clone() for value in (pooled, *statistics, *gradients)])
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-12, atol=1e-13)


def test_without_padding_it_is_batchnorm():
    inputs = (torch.randn(4, 3, 5) * 3 + 2).double()
    ours, theirs = SharedBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.arange(5) + 1.0)
    left = ours(inputs, torch.ones(4, 3, dtype=torch.bool))
    right = theirs(inputs.flatten(0, 1)).view(inputs.shape)
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_two_ranks_normalise_as_one(tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(6, 4, 3).double() + torch.arange(6.0).double()[:, None, None]
    present = torch.arange(4) < torch.tensor([4, 2, 1, 3, 4, 1])[:, None]
    arriving = torch.randn(6, 4, 3).double()
    torch.save((inputs, present, arriving), tmp_path / "batch.pt")
    run_ranks(2, Path(__file__).with_name("rank_of_region_norm.py"), tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]

    norm = SharedBatchNorm(3).double()
    inputs.requires_grad_()
    outputs = norm(inputs, present)
    outputs.backward(arriving)
    together = {key: torch.cat([rank[key] for rank in ranks]) for key in ("outputs", "to_inputs")}
    torch.testing.assert_close(together["outputs"], outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(together["to_inputs"], inputs.grad, rtol=0, atol=1e-12)
    for rank in ranks:
        for found, parameter in zip(rank["to_parameters"], norm.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=0, atol=1e-12)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(rank["state"][name], value)


def test_live_statistics_are_refused_in_pieces():
    raw = {
        "data": {"path": "d"},
        "run": {"dir": "r"},
        "model": {"image": {"backbone": "regions"}},
        "engine": {"micro_batches": 4},
    }
    with pytest.raises(ConfigError, match=r"whole batch; engine\.micro_batches is 4, set 1"):
        Config.parse(raw)
