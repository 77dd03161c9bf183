"""Models of timm as image towers, against timm's own features; skipped where it is not installed.

Public reports: pytorch-image-models#397 and #657 (no feature maps of a ViT, or its class token
alone); #1438 (Swin's features have their channels last); transformers#37817 (register tokens taken
for patches); #2332 there (a checkpoint whose classifier does not fit); lightly-train#29 (a ViT that
was made for 224 pixels refuses others); mr-eggplant/FOA#2 and staghado/vit.cpp#18 (ImageNet's mean
and deviation for weights that were trained with 0.5: no error, and a worse model).
"""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from torch import nn

from vse_scale.config import Config, ModelConfig
from vse_scale.config.model import IMAGE
from vse_scale.errors import ConfigError, ModelError
from vse_scale.model.blueprint import blueprint
from vse_scale.model.timm import listed
from vse_scale.model.towers.batchnorm import calibrate_batchnorm
from vse_scale.model.vse import VSEModel
from vse_scale.planning.flops import count_flops

IMAGENET = (0.485, 0.456, 0.406)


@pytest.fixture
def timm():
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed: pip install 'vse-scale[timm]'")


def configured(name: str, **image: object) -> Config:
    return Config.parse(
        {
            "data": {"path": "d", "global_batch": 4},
            "run": {"dir": "r"},
            "model": {
                "embed_dim": 8,
                "image": {"backbone": f"timm/{name}", **image},
                "text": {"encoder": "bigru", "word_channels": 6},
            },
        }
    )


def opened(name: str, **image: object) -> VSEModel:
    torch.manual_seed(0)
    return VSEModel(configured(name, **image).model, 30, 0).eval()


def filled(model: nn.Module) -> nn.Module:
    """Give statistics values unlike those of a new model, and blocks that are scaled by 0 some."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 1.5)
            elif "running_mean" in name or not value.is_floating_point():
                continue
            elif not value.any():
                value.uniform_(-0.1, 0.1)
    return model.eval()


class TestWithoutTimm:
    """Whatever the machine has, `import timm` fails here."""

    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch):
        listed.cache_clear()
        monkeypatch.setitem(sys.modules, "timm", None)
        yield
        listed.cache_clear()

    def test_a_configuration_says_what_to_install(self):
        with pytest.raises(ConfigError) as error:
            configured("resnet18")
        said = str(error.value)
        assert "model.image.backbone is 'timm/resnet18': timm/resnet18 needs the package" in said
        assert said.endswith("pip install 'vse-scale[timm]'")
        assert "\n" not in said

    def test_an_exported_model_says_what_to_install(self, tmp_path):
        config = ModelConfig.model_validate(
            {"image": {"backbone": "tiny", "size": 32}, "text": {"encoder": "bigru"}}
        )
        VSEModel(config, 30, 0).save_pretrained(tmp_path)
        described = json.loads((tmp_path / "config.json").read_text())
        described["model"]["image"]["backbone"] = "timm/resnet18"
        (tmp_path / "config.json").write_text(json.dumps(described))
        with pytest.raises(ModelError, match=r"config\.json: timm/resnet18 needs .*\[timm\]'$"):
            VSEModel.from_pretrained(tmp_path)

    def test_a_recorded_run_is_read_without_it(self):
        assert IMAGE.recorded({"backbone": "timm/resnet18"}) is None

    def test_a_torchvision_of_another_torch_is_a_line(self, monkeypatch, tmp_path):
        (tmp_path / "timm.py").write_text(
            "raise RuntimeError('operator torchvision::nms does not exist\\nmore')\n"
        )
        monkeypatch.delitem(sys.modules, "timm")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigError, match=r"\(operator torchvision::nms does not exist\); pip"):
            configured("resnet18")

    def test_its_keys_are_known(self):
        with pytest.raises(ConfigError, match=r"is a setting of backbone=timm/NAME"):
            Config.parse(
                {
                    "data": {"path": "d"},
                    "run": {"dir": "r"},
                    "model": {"image": {"backbone": "tiny", "pretrained": True}},
                }
            )


@pytest.mark.parametrize(
    ("name", "size", "before"),
    [
        ("resnet18", 64, 0),
        ("test_convnext", 64, 0),
        ("test_efficientnet", 64, 0),
        ("test_vit", 64, 1),
        ("vit_small_patch14_reg4_dinov2", 56, 5),
        ("test_mambaout", 64, 0),  # channels last, as Swin
        pytest.param("swin_tiny_patch4_window7_224", 224, 0, marks=pytest.mark.slow),
    ],
)
def test_it_gives_timms_features_and_an_export_gives_them_again(timm, tmp_path, name, size, before):
    made_for = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = filled(timm.create_model(name, num_classes=7, **made_for))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = opened(name, weights=str(tmp_path / "weights.pth"), size=size)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out = theirs.forward_features(pixels)
        if out.dim() == 4:
            cells_last = out.shape[1] == out.shape[2] != out.shape[3]
            expected = out.flatten(1, 2) if cells_last else out.flatten(2).mT
        else:
            expected = out[:, before:]
        found = model.image.features(pixels)
    assert found.shape == expected.shape == (2, model.grid_cells, theirs.num_features)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not model.untrained_statistics
    model.save_pretrained(tmp_path / "kept")
    (tmp_path / "weights.pth").unlink()
    again = VSEModel.from_pretrained(tmp_path / "kept")
    assert again.image_spec == model.image_spec
    with torch.no_grad():
        assert torch.equal(again.encode_images(pixels), model.encode_images(pixels))
    # What only a classifier needs would never learn.
    pooled = model.train()(pixels, torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]))[0]
    (pooled * torch.linspace(0, 1, 8)).sum().backward()
    assert [n for n, p in model.image.named_parameters() if p.grad is None] == []


def test_size_and_pixels_are_those_that_timm_lists(timm):
    half = configured("vit_tiny_patch16_224").model.image
    assert half.size == 224
    assert (half.image_spec().mean, half.image_spec().std) == ((0.5,) * 3, (0.5,) * 3)
    assert half.image_spec().antialias
    assert configured("vit_small_patch14_reg4_dinov2").model.image.size == 518
    assert configured("resnet18", size=96).model.image.image_spec().mean == IMAGENET
    assert configured("vit_tiny_patch16_224", pixels="imagenet").model.image.image_spec().mean == (
        IMAGENET
    )
    with pytest.raises(ConfigError, match=r"with mean \(0.5, 0.5, 0.5\) .* set .*pixels=timm"):
        configured("vit_tiny_patch16_224", pixels="imagenet", pretrained=True)
    assert configured("resnet18", pixels="imagenet", pretrained=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet5O", "has no model 'resnet5O'; did you mean timm/resnet50"),
        (
            "resnet50.a9_in1k",
            r"has no model 'resnet50\.a9_in1k'; did you mean timm/resnet50\.\w+ or timm",
        ),
        ("hf-hub:other/model", "has no model 'hf-hub:other/model'"),
        ("local-dir:/tmp", "has no model"),
        ("", "has no model ''"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(timm, name, said):
    with pytest.raises(ConfigError, match=said) as error:
        configured(name)
    assert "\n" not in str(error.value)


class TestRefused:
    def test_a_size_that_it_does_not_take(self, timm):
        with pytest.raises(ModelError, match=r"timm/test_vit .*model\.image\.size=20 \(") as error:
            opened("test_vit", size=20)
        assert "\n" not in str(error.value)
        with pytest.raises(ModelError, match=r"nest_t.*size=100 \(.*set model\.image\.size to"):
            opened("nest_tiny", size=100)
        with pytest.raises(ModelError, match=r"drop_path.*set model\.image\.drop_path=0"):
            opened("vgg11", size=64, drop_path=0.1)

    def test_a_model_of_several_grids(self, timm):
        with pytest.raises(ModelError, match=r"gives list for an image, not a vector per cell"):
            opened("crossvit_9_240")

    def test_weights_of_another(self, timm, tmp_path):
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
        with pytest.raises(ModelError, match=r"w\.pth: does not fit timm/test_convnext; ") as error:
            opened("test_convnext", weights=str(tmp_path / "w.pth"))
        assert "\n" not in str(error.value)
        state = timm.create_model("test_resnet").state_dict()
        del state["layer1.0.conv1.weight"]
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(ModelError, match=r"Missing key.*layer1\.0\.conv1\.weight"):
            opened("test_resnet", weights=str(tmp_path / "w.pth"))

    def test_weights_that_cannot_be_fetched(self, timm, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match=r"weights of timm/test_vit cannot be fetched"):
            opened("test_vit", pretrained=True)

    def test_settings_that_contradict_each_other(self, timm):
        with pytest.raises(ConfigError, match=r"say two things"):
            configured("resnet18", pretrained=True, weights="w.pth")
        with pytest.raises(ConfigError, match=r"timm lists no weights for timm/test_mambaout"):
            configured("test_mambaout", pretrained=True)


def test_names_of_weights_that_are_not_read_are_said(timm):
    (said,) = configured("resnet18.a1_in1k").model.image.doubts()
    assert "(a1_in1k), and none are read" in said
    assert configured("resnet18").model.image.doubts() == []
    (said,) = configured("resnet18.a1_in1k", pretrained=True).model.image.doubts()
    assert "bicubic" in said
    assert configured("test_resnet", pretrained=True).model.image.doubts() == []


@pytest.mark.parametrize(("name", "stages"), [("test_resnet", 5), ("test_vit", 7)])
def test_stages_are_frozen_and_recomputed_like_the_built_in_ones(timm, name, stages):
    model = opened(name, size=64).train()
    groups = model.parameter_groups()
    assert [key for key in groups if "." in key] == [f"backbone.{n + 1}" for n in range(stages)]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    pixels = torch.randn(2, 3, 64, 64)

    def gradients(trained: int | None) -> dict[str, list]:
        model.zero_grad(set_to_none=True)
        model.trained_stages = trained
        pooled = model(pixels, torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]))[0]
        (pooled * torch.linspace(0, 1, 8)).sum().backward()
        return {key: [p.grad for p in own] for key, own in groups.items() if "." in key}

    whole = gradients(None)
    for recomputed in (False, True):
        for trained in (0, 1, 2, stages):
            for place, (key, found) in enumerate(gradients(trained).items(), start=1):
                if place <= trained:
                    torch.testing.assert_close(found, whole[key])
                else:
                    assert set(found) == {None}
            assert all(p.requires_grad for p in model.parameters())
        if not recomputed:
            model.recompute_activations()


def test_its_last_layers_train_alone_and_rates_decay(timm):
    model = opened("test_vit", size=64, train_last=2)
    trained = {n for n, p in model.image.backbone.named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in trained if "blocks" in name} == {"4", "5"}
    assert {name for name in trained if "blocks" not in name} == {
        "model.norm.weight",
        "model.norm.bias",
    }
    above = model.layers_above()
    assert above[model.image.backbone.model.cls_token] == 6
    assert above[model.image.backbone.model.norm.weight] == 0


def test_a_new_cnn_is_calibrated_and_its_statistics_are_frozen(timm):
    model = opened("test_efficientnet", size=64)
    backbone = model.image.backbone
    assert model.untrained_statistics
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    calibrate_batchnorm(backbone, [torch.randn(8, 3, 64, 64)])
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.train()(pixels), backbone.eval()(pixels))
        # Activations stand inside timm's BatchNorm; without them features would be below -0.3.
        assert backbone(pixels).min() > -0.3


def test_paths_are_dropped_where_asked_for_alone(timm):
    def rates(**image: object) -> list[float]:
        with torch.device("meta"):
            model = VSEModel(configured("test_convnext", **image).model, 30, 0)
        return [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]

    assert not any(rates())
    assert max(rates(drop_path=0.3)) == pytest.approx(0.3)
    # Its own default is 0.1.
    with torch.device("meta"):
        model = VSEModel(configured("swin_tiny_patch4_window7_224").model, 30, 0)
    assert not any(m.drop_prob for m in model.modules() if hasattr(m, "drop_prob"))


def test_its_resnet50_counts_and_computes_as_the_built_in_one(timm, tmp_path):
    torch.save(filled(timm.create_model("resnet50")).state_dict(), tmp_path / "weights.pth")
    pixels = torch.randn(1, 3, 64, 64)
    features, operations = [], []
    for image in ({"backbone": "timm/resnet50"}, {"backbone": "resnet50", "antialias": True}):
        config = configured("", **image, size=64, weights=str(tmp_path / "weights.pth"))
        with torch.no_grad():
            features.append(VSEModel(config.model, 30, 0).eval().image.features(pixels))
        operations.append(count_flops(config, tokens=6))
    assert features[1].std() > 0.01
    assert (features[0] - features[1]).abs().max() <= 1e-6 * features[1].abs().max()
    assert operations[0] == operations[1] > 1e9


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_it_is_laid_out_without_weights(timm, name):
    config = configured(name, size=64, pretrained=name != "test_mambaout")
    model, assumed = blueprint(config)
    assert assumed == []
    whole = VSEModel(config.model.__class__(**{**vars(config.model), "image": (
        config.model.image.weightless()[0])}), 1000, 0)  # fmt: skip
    shapes = {n: p.shape for n, p in whole.image.named_parameters()}
    assert {n: p.shape for n, p in model.image.named_parameters()} == shapes
