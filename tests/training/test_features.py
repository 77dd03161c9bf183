"""A frozen image tower, and its features stored once and read in place of pixels.

Public reports: lightly-ai/lightly#1438 and pgniewko/gt-pyg#112 (a frozen backbone's BatchNorm went
on moving, for ``train()`` undid what had frozen it); kijai/ComfyUI-WanVideoWrapper#2046,
brain-score/vision#2503 and vllm-project/vllm#45093 (stored values of other weights, or of another
image size, were served without a word).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Job, Trained, assert_same_bits, distance, train_jobs
from torch import Tensor, nn

from vse_scale.config import Config
from vse_scale.data import features as stored_features
from vse_scale.data.features import StoredFeatures
from vse_scale.data.mixing import open_datasets
from vse_scale.data.regions import Regions, read_regions
from vse_scale.errors import ConfigError, DatasetError
from vse_scale.model.towers.resnet import ResNetSettings, ResNetTower
from vse_scale.model.vse import VSEModel
from vse_scale.training import features
from vse_scale.training.schedule import Schedule
from vse_scale.world.processes import ALONE

FROZEN = ("model.image.frozen=true", "data.crop_scale=[1,1]", "data.flip=0")
POOLED = ("model.pool=mean", "model.image.drop_cells=false")
TRAINED = (*FROZEN, "optim.lr=1e-5", "model.image.power=0.5")


def cache(folder: Path) -> str:
    return f"data.feature_cache={folder}"


@pytest.fixture(scope="module")
def trained(few_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """One process: steps with pixels and with stored features, and a run that was resumed."""
    folder = tmp_path_factory.mktemp("frozen")
    cached = (*TRAINED, cache(folder / "cache"))
    jobs = {
        "pixels": Job(TRAINED, count=6),
        "features": Job(cached, count=6),
        "mean of pixels": Job((*TRAINED, *POOLED), count=6),
        "mean": Job((*cached, *POOLED), count=6),
        "begun": Job(cached, count=3, save=True, folder=folder / "run"),
        "resumed": Job(cached, first=None, count=3, folder=folder / "run"),
    }
    return train_jobs(few_steps, folder, 1, jobs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"), [("pixels", "features"), ("mean of pixels", "mean")], ids=["gpo", "mean"]
)
def test_stored_features_train_as_pixels_do(
    trained: dict[str, Trained], one: str, other: str
) -> None:
    pixels, stored = trained[one].steps, trained[other].steps
    for step, (seen, read) in enumerate(zip(pixels, stored, strict=True)):
        assert torch.equal(seen["pairs"], read["pairs"])
        # Features are rounded to float16, 2e-4 of a value; what that moves in a loss is far less.
        assert read["record"]["loss"] == pytest.approx(seen["record"]["loss"], rel=1e-5), step
        assert distance(seen["gradient"], read["gradient"]) < 5e-3
    backbone = [k for k in pixels[-1]["state"] if k.startswith("model.image.backbone.")]
    assert backbone
    for run in trained.values():
        held = run.steps[-1]["state"]
        assert not [k for k in backbone if not torch.equal(held[k], trained["pixels"].start[k])]


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(trained: dict[str, Trained]) -> None:
    assert trained["resumed"].first == 3
    assert_same_bits(trained["resumed"].steps[-1]["state"], trained["features"].steps[-1]["state"])


@pytest.mark.slow
def test_two_ranks_store_and_train_the_same(
    few_steps: Path, trained: dict[str, Trained], tmp_path: Path
) -> None:
    own = tmp_path / "cache"
    found = train_jobs(few_steps, tmp_path, 2, {"two": Job((*TRAINED, cache(own)))})["two"]
    expected = trained["features"].steps[0]
    assert found.steps[0]["record"]["loss"] == pytest.approx(expected["record"]["loss"], rel=1e-5)
    first = trained["features"].folder.parents[1] / "cache"
    names = sorted(path.relative_to(own) for path in own.rglob("*.npy"))
    assert len(names) == 4  # three shards to train on, one to validate on
    for name in names:
        assert (first / name).read_bytes() == (own / name).read_bytes()


class Doubling(nn.Module):
    """BatchNorm and dropout, of which the first moves and the second draws in training."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))

    def forward(self, pixels: torch.Tensor, trained_stages: int | None) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained_stages != 0):
            return self.layers(pixels)


def test_a_frozen_backbone_stays_in_evaluation() -> None:
    tower = ResNetTower(ResNetSettings(backbone="tiny", size=32, frozen=True), 8, "mean")
    tower.backbone = Doubling()
    before = tower.backbone.layers[0].running_mean.clone()
    nn.Module.train(nn.ModuleList([tower]), True)
    assert tower.training
    assert tower.projection.training
    pixels = torch.randn(2, 3, 8, 8) + 4
    first, second = tower.features(pixels), tower.features(pixels)
    assert torch.equal(first, second)
    assert torch.equal(tower.backbone.layers[0].running_mean, before)


def config_of(scenes: Path, *overrides: str) -> Config:
    small = Path(__file__).parents[1] / "small.yaml"
    return Config.load(small, [f"data.path={scenes}", "run.dir=r", *FROZEN, *overrides])


def test_its_backbone_never_trains(scenes: Path) -> None:
    schedule = Schedule(config_of(scenes, "train.frozen_backbone_epochs=0"), steps_per_epoch=2)
    assert [schedule.at(step).trained_stages for step in (0, 2, 20)] == [0, 0, 0]


def stored_by(config: Config, scenes: Path) -> StoredFeatures:
    torch.manual_seed(0)
    model = VSEModel(config.model, 120, 0)
    dataset = open_datasets([scenes], "train")
    features.cache_features(model, (dataset, None), config, ALONE)
    assert dataset.features is not None
    return dataset.features


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_features_that_are_pooled_once_train_as_whole_ones(
    scenes: Path, tmp_path: Path, pool: str
) -> None:
    changes = (
        *POOLED,
        f"model.pool={pool}",
        "model.image.power=0.5",
        "model.image.drop_channels=0.5",
    )
    config = config_of(scenes, cache(tmp_path / "c"), *changes)
    torch.manual_seed(0)
    model = VSEModel(config.model, 120, 0).train()
    dataset = open_datasets([scenes], "train")
    features.cache_features(model, (dataset, None), config, ALONE)
    once = read_regions(dataset, np.arange(16))
    again = read_regions(dataset, np.arange(16))  # kept by now
    dataset.features = StoredFeatures(
        dataset.features.folder, dataset.shard_digests, dataset.shard_sizes,
        (model.grid_cells, model.image.backbone.channels),
    )  # fmt: skip
    whole = read_regions(dataset, np.arange(16))
    assert once.features.shape == (16, whole.features.shape[2])
    assert torch.equal(once.features, again.features)

    def gradient(regions: Regions) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)  # of the channels left out
        model.zero_grad()
        found = model.image(regions.features, regions.lengths)
        found.square().sum().backward()
        return found.detach(), model.image.projection.weight.grad

    for found, expected in zip(gradient(once), gradient(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_vectors_are_kept_as_far_as_there_is_room(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with a split that is larger: its images are pooled at every use."""
    stored = stored_by(config_of(scenes, cache(tmp_path / "c"), "model.pool=gpo"), scenes)
    images, channels = 80, stored.regions(0).shape[1]
    calls = []

    def pool(cells: np.ndarray) -> np.ndarray:
        calls.append(cells)
        return cells.astype(np.float32).mean(0)

    for room, called in ((4 * channels * images, images), (4 * channels * images - 1, 2 * images)):
        monkeypatch.setattr(stored_features, "MOST_POOLED_BYTES", room)
        calls.clear()
        stored.pool_by(pool)
        first, second = ([stored.regions(image) for image in range(images)] for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert len(calls) == called


@pytest.mark.parametrize("changed", ["model.pool=gpo", "model.image.drop_cells=true"])
def test_cells_that_a_step_chooses_among_are_read_whole(
    scenes: Path, tmp_path: Path, changed: str
) -> None:
    stored = stored_by(config_of(scenes, cache(tmp_path / "c"), *POOLED, changed), scenes)
    assert stored.regions(0).ndim == 2


def key_of(config: Config) -> str:
    torch.manual_seed(0)
    return features._key(VSEModel(config.model, 120, 0), config, ALONE)


def test_files_are_those_of_the_weights_and_the_pixels(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(scenes, cache(tmp_path / "c"))
    stored = stored_by(config, scenes)
    files = sorted(stored.folder.glob("*.npy"))
    assert len(files) == 3
    assert sum(len(np.load(file)) for file in files) == 80
    torch.manual_seed(0)
    model = VSEModel(config.model, 120, 0).eval()
    dataset = open_datasets([scenes], "train")
    pixels = next(
        features.image_batches(
            dataset, [70], model.image_spec, batch=1, device=ALONE.device, threads=1
        )
    )
    with torch.no_grad():
        expected = model.image.features(model.image_spec.normalise(pixels))[0]
    found = torch.from_numpy(np.asarray(stored.regions(70)).astype(np.float32))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # The same again is read, not computed; a torn file is computed again, with a line.
    times = [file.stat().st_mtime_ns for file in files]
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-100])
    stored_by(config, scenes)
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [
        True, False, True,
    ]  # fmt: skip
    assert files[1].read_bytes() == whole
    assert "is no whole file of features" in caplog.text
    assert key_of(config) == stored.folder.name
    others = ("model.image.size=48", "model.image.pixels=detector", "model.image.antialias=true")
    keys = {key_of(config_of(scenes, other)) for other in others}
    assert len(keys | {stored.folder.name}) == 4
    later = ("model.image.drop_cells=false", "model.image.power=0.5", "model.pool=mean")
    assert key_of(config_of(scenes, "eval.batch=7", *later)) == stored.folder.name
    with torch.no_grad():
        model.image.backbone.conv1.weight[0, 0, 0, 0] += 1e-3
    assert features._key(model, config, ALONE) != stored.folder.name


def test_what_cannot_be_stored_is_said(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = StoredFeatures(tmp_path, ["a" * 64], [2], (3, 4))
    with pytest.raises(DatasetError, match=r"largest is 1e\+05.*set data\.feature_cache=null"):
        stored.rounded(0, np.full((2, 3, 4), 1e5, np.float32))
    with pytest.raises(DatasetError, match="is NaN or infinite; look at the weights"):
        stored.rounded(0, np.full((2, 3, 4), np.nan, np.float32))
    assert stored.missing() == [0]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: type("U", (), {"free": 5})())
    with pytest.raises(ConfigError, match=r"features take .* GB, and .* free"):
        stored_by(config_of(scenes, cache(tmp_path / "c")), scenes)


@pytest.mark.parametrize(
    ("overrides", "message", "remedy"),
    [
        (["data.flip=0.5"], "images are cropped or flipped at random", ["data.flip=0"]),
        (["data.crop_scale=[0.6,1]"], "data.crop_scale is", ["data.crop_scale=[1,1]"]),
        (
            ["model.image.frozen=false"],
            "features change while the backbone trains",
            ["model.image.frozen=true"],
        ),
    ],
)
def test_features_that_change_are_not_stored(
    scenes: Path, overrides: list[str], message: str, remedy: list[str]
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        config_of(scenes, cache(Path("c")), *overrides)
    assert "\n" not in str(refused.value)
    for said in (*remedy, "data.feature_cache=null"):
        assert said.replace(" ", "") in str(refused.value).replace(" ", "")
        config_of(scenes, cache(Path("c")), *overrides, said)


def test_regions_have_nothing_to_freeze() -> None:
    with pytest.raises(ConfigError, match="has no backbone"):
        Config.parse(
            {
                "data": {"path": "d"},
                "run": {"dir": "r"},
                "model": {
                    "image": {"backbone": "regions", "frozen": True},
                    "text": {"encoder": "bigru"},
                },
            }
        )
