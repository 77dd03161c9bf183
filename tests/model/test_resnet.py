import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vse_scale.bench.plain import PlainBatchNorm2d
from vse_scale.errors import ModelError
from vse_scale.model.towers.batchnorm import (
    FrozenBatchNorm2d,
    ScaledConv2d,
    calibrate_batchnorm,
)
from vse_scale.model.towers.efficientnet import SameConv2d
from vse_scale.model.towers.resnet import BACKBONES, Architecture, ResNet, Stage
from vse_scale.model.weights import _torchvision_names

SMALL = Architecture((Stage(8, 1, 1), Stage(16, 2, 2)), stem_channels=8, group_width=64)


def on_meta(name):
    with torch.device("meta"):
        return ResNet(BACKBONES[name])


# torchvision's published parameter counts, less its classifier of 1000 classes.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnet152_caffe", 60_192_808),
        ("resnext101_32x8d", 88_791_336),
    ],
)
def test_sizes_are_torchvisions(name, parameters):
    classifier = 2048 * 1000 + 1000
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters - classifier


@pytest.mark.parametrize("half", ["base", "top"])
def test_the_detectors_file_has_the_published_names_and_shapes(shared, half):
    keys = json.loads((shared / "reference" / "keys_grid.json").read_text())["image"]
    prefix = f"module.backbone.{half}."
    published = {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix)}
    both = {"base": {}, "top": {}} | {half: published}
    ours = {k: list(v.shape) for k, v in on_meta("detector").state_dict().items()}
    renamed = _torchvision_names(both)
    assert renamed
    assert renamed == {k: v for k, v in ours.items() if k.startswith("layer4") == (half == "top")}


def test_detector_has_the_published_names_and_shapes(shared):
    prefix = "module.backbone.resnet."
    keys = json.loads((shared / "reference" / "keys_grid.json").read_text())["image"]
    published = {
        k.removeprefix(prefix): tuple(v)
        for k, v in keys.items()
        if k.startswith(prefix) and not k.startswith(f"{prefix}fc.")
    }
    ours = {k: tuple(v.shape) for k, v in on_meta("detector").state_dict().items()}
    assert ours == published


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [32, 96, 97, 130])
def test_grid_side_is_what_the_network_gives(name, size):
    backbone = on_meta(name)
    grid = backbone(torch.empty(1, 3, size, size + 64, device="meta"))
    assert grid.shape == (
        1,
        backbone.channels,
        backbone.grid_side(size),
        backbone.grid_side(size + 64),
    )


def test_tiny_sees_twelve_by_twelve_cells_at_96_pixels():
    assert ResNet(BACKBONES["tiny"])(torch.randn(2, 3, 96, 96)).shape == (2, 128, 12, 12)


def test_strides_are_where_the_weights_expect_them():
    def strides(name):
        block = on_meta(name).get_submodule("layer2.0")
        return block.conv1.stride, block.conv2.stride

    assert strides("resnet101") == ((1, 1), (2, 2))
    assert strides("detector") == ((2, 2), (1, 1))


def apart(network):
    """Have each BatchNorm of a network normalise after its convolution; return the network."""
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.__class__ = PlainBatchNorm2d
    return network


class TestFrozenBatchNorm:
    def test_training_changes_no_statistics_and_uses_the_stored_ones(self):
        ours, theirs = FrozenBatchNorm2d(3), nn.BatchNorm2d(3)
        for value in theirs.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0)
        ours.load_state_dict(theirs.state_dict())
        before = {k: v.clone() for k, v in ours.state_dict().items()}
        inputs = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(ours.train()(inputs), theirs.eval()(inputs))
        ours(inputs).sum().backward()
        assert ours.weight.grad is not None
        assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())

    @pytest.mark.parametrize("kind", [ScaledConv2d, SameConv2d])
    @pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (5, 2, 4)])
    def test_after_a_convolution_it_is_a_part_of_its_weights(self, kind, kernel, stride, groups):
        """Values and all gradients, against the two layers of torch one after the other."""
        torch.manual_seed(1)
        convolution, layer = (
            kind(4, 8, kernel, stride, groups=groups).double(),
            FrozenBatchNorm2d(8),
        )
        layer = layer.double()
        for value in layer.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0)
        inputs = torch.randn(3, 4, 9, 10, dtype=torch.float64, requires_grad=True)
        parameters = [inputs, *convolution.parameters(), *layer.parameters()]
        ours = layer(inputs, convolution)
        theirs = F.batch_norm(
            convolution(inputs), layer.running_mean, layer.running_var, layer.weight, layer.bias,
            eps=layer.eps,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        grads = torch.randn_like(ours)
        for found, expected in zip(
            torch.autograd.grad(ours, parameters, grads),
            torch.autograd.grad(theirs, parameters, grads),
            strict=True,
        ):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_factors_of_narrow_parameters_are_computed_in_float32(self, dtype):
        """The rounding is that of the weights alone: within half a unit of each."""
        torch.manual_seed(2)
        convolution, layer = ScaledConv2d(4, 8, 3), FrozenBatchNorm2d(8)
        layer.running_var.uniform_(0.5, 2.0)
        layer.running_mean.normal_()
        convolution, layer = convolution.to(dtype), layer.to(dtype)
        inputs = torch.randn(2, 4, 5, 5, dtype=dtype)
        found = layer(inputs, convolution)
        assert found.dtype == dtype
        wide = copy.deepcopy(layer).double()(inputs.double(), copy.deepcopy(convolution).double())
        unit = torch.finfo(dtype).eps
        assert (found.double() - wide).abs().max() <= 2 * unit * wide.abs().max()

    @pytest.mark.parametrize("autocast", [False, True])
    def test_a_network_is_as_near_to_float64_as_by_two_layers(self, autocast):
        """Outputs and all gradients together; rounding alone differs, here in either direction."""

        def errors(network):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = network(pixels)
            output.double().square().mean().backward()
            found = [output.double().flatten(), *(p.grad.flatten() for p in network.parameters())]
            return found[0], torch.cat(found[1:]).double()

        torch.manual_seed(3)
        pixels = torch.randn(4, 3, 64, 64)
        folded = ResNet(SMALL)
        with torch.no_grad():
            calibrate_batchnorm(folded, [pixels])
            for layer in folded.modules():
                if isinstance(layer, FrozenBatchNorm2d):
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(std=0.2)
        exact, plain = copy.deepcopy(folded).double(), apart(copy.deepcopy(folded))
        found = [errors(network) for network in (folded, plain)]
        pixels, autocast = pixels.double(), False
        for ours, theirs, truth in zip(*found, errors(exact), strict=True):
            assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm()

    def test_the_backward_pass_keeps_half_of_the_tensors(self):
        """Of each convolution what comes after the activation, and not what comes before too."""

        def bytes_kept(backbone):
            kept = {}

            def keep(tensor):
                if tensor.shape[:1] == pixels.shape[:1]:  # of the images, not of the weights
                    kept[tensor.data_ptr()] = tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                backbone(pixels)
            return sum(tensor.nbytes for tensor in kept.values())

        pixels = torch.randn(7, 3, 96, 96)
        folded = ResNet(BACKBONES["resnet50"])
        plain = apart(copy.deepcopy(folded))
        assert 0.4 < bytes_kept(folded) / bytes_kept(plain) < 0.55

    def test_calibration_gives_the_population_of_all_batches(self):
        layer = FrozenBatchNorm2d(3)
        batches = [torch.randn(n, 3, 4, 6) * n + n for n in (5, 2, 1)]
        calibrate_batchnorm(layer, batches)
        values = torch.cat([b.transpose(0, 1).flatten(1) for b in batches], dim=1).double()
        torch.testing.assert_close(layer.running_mean.double(), values.mean(1))
        torch.testing.assert_close(layer.running_var.double(), values.var(1, correction=0))

    def test_calibration_on_one_batch_is_exact_for_every_layer(self):
        torch.manual_seed(0)
        backbone = ResNet(SMALL).double()
        pixels = torch.randn(6, 3, 32, 32, dtype=torch.float64)
        calibrate_batchnorm(backbone, [pixels])
        inputs = {}
        for module in backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.register_forward_pre_hook(
                    lambda module, args: inputs.update({module: args[1](args[0])})
                )
        backbone(pixels)
        assert len(inputs) == 1 + 4 + 4 + 3
        for layer, values in inputs.items():
            variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
            torch.testing.assert_close(layer.running_mean, mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(layer.running_var, variance, rtol=1e-9, atol=1e-9)

    def test_calibration_is_the_same_every_time(self):
        states = []
        for _ in range(2):
            torch.manual_seed(0)
            backbone = ResNet(SMALL)
            calibrate_batchnorm(backbone, torch.randn(8, 3, 32, 32).split(3))
            states.append(backbone.state_dict())
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
        assert (states[0]["layer2.1.bn3.running_var"] != 1.0).all()

    def test_calibration_needs_images_and_ends_in_any_case(self):
        layer = FrozenBatchNorm2d(2)
        with pytest.raises(ValueError, match="no images"):
            calibrate_batchnorm(layer, [])
        assert layer.population is None


class TestWeights:
    @pytest.fixture
    def saved(self, tmp_path):
        torch.manual_seed(0)
        source = ResNet(SMALL)
        weights = source.state_dict() | {"fc.weight": torch.zeros(5, 4), "fc.bias": torch.zeros(5)}
        return source, weights, tmp_path / "weights.pth"

    def test_a_classifier_is_left_out(self, saved):
        source, weights, path = saved
        torch.save(weights, path)
        loaded = ResNet(SMALL)
        loaded.load_weights(path)
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in loaded.state_dict().items())

    def test_files_older_than_the_batch_counter_load(self, saved):
        _, weights, path = saved
        torch.save({k: v for k, v in weights.items() if "num_batches" not in k}, path)
        ResNet(SMALL).load_weights(path)

    def test_every_key_that_disagrees_is_named(self, saved):
        _, weights, path = saved
        del weights["layer1.0.bn1.bias"], weights["conv1.weight"]
        weights["head.weight"] = torch.zeros(1)
        weights["bn1.weight"] = torch.zeros(9)
        torch.save(weights, path)
        loaded = ResNet(SMALL)
        before = loaded.layer2[0].conv1.weight.clone()
        with pytest.raises(ModelError) as error:
            loaded.load_weights(path)
        message = str(error.value)
        assert str(path) in message
        assert "2 missing: conv1.weight, layer1.0.bn1.bias" in message
        assert "1 surplus: head.weight" in message
        assert "bn1.weight (9,) for (8,)" in message
        assert "\n" not in message
        assert torch.equal(loaded.layer2[0].conv1.weight, before)

    def test_the_published_detectors_file_loads(self, saved, tmp_path):
        source = ResNet(Architecture((*SMALL.stages, Stage(8, 1, 2), Stage(8, 1, 2))))
        numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
        base, top = {}, {}
        for name, value in source.state_dict().items():
            layer, _, rest = name.partition(".")
            if layer == "layer4":
                top[f"0.{rest}"] = value
            else:
                base[f"{numbers[layer]}.{rest}"] = value
        torch.save({"base": base, "top": top}, tmp_path / "detector.pth")
        loaded = ResNet(Architecture((*SMALL.stages, Stage(8, 1, 2), Stage(8, 1, 2))))
        loaded.load_weights(tmp_path / "detector.pth")
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in loaded.state_dict().items())
        del base["4.0.conv1.weight"]
        base["7.0.conv1.weight"] = top["9.bias"] = torch.zeros(1)
        torch.save({"base": base, "top": top}, tmp_path / "detector.pth")
        with pytest.raises(ModelError, match=r"1 missing: layer1\.0\.conv1\.weight") as error:
            loaded.load_weights(tmp_path / "detector.pth")
        assert "2 surplus: base.7.0.conv1.weight, top.9.bias" in str(error.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "cannot be read as weights"),
            (b"not a checkpoint", "cannot be read as weights"),
            (None, "no such file"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path, content, message):
        for name in ("weights.pth", "weights.safetensors"):
            path = tmp_path / name
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(ModelError, match=message) as error:
                ResNet(SMALL).load_weights(path)
            assert str(path) in str(error.value)

    def test_a_checkpoint_that_is_no_state_dict_is_refused(self, tmp_path):
        torch.save([torch.zeros(1)], tmp_path / "list.pth")
        with pytest.raises(ModelError, match="holds list, not tensors by name"):
            ResNet(SMALL).load_weights(tmp_path / "list.pth")
