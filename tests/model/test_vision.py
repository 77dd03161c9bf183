import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
)

from vse_scale.config import Config, ModelConfig
from vse_scale.errors import ConfigError, ModelError
from vse_scale.model.towers.batchnorm import FrozenBatchNorm2d, calibrate_batchnorm
from vse_scale.model.towers.vision import HuggingFaceBackbone, VisionSettings
from vse_scale.model.vse import VSEModel

TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
    "patch_size": 16,
}
CNN = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# What stands before the patches, and the stride.
KINDS = {
    "resnet": (CNN | {"embedding_size": 8}, 0, 8),
    "regnet": (CNN | {"embedding_size": 8, "groups_width": 8}, 0, 8),
    "convnext": (CNN | {"num_stages": 2}, 0, 8),
    "vit": (TRANSFORMER, 1, 16),
    "dinov2": (TRANSFORMER, 1, 16),
    "dinov2_with_registers": (TRANSFORMER, 5, 16),
    "swin": ({"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 64}, 0, 8),
    "siglip_vision_model": (TRANSFORMER, 0, 16),
}


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    """A model of transformers, saved; how many tokens stand before its patches; its stride."""
    given, before, stride = KINDS[request.param]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(request.param, **given)).eval()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)  # unlike those of a new model
    model.save_pretrained(tmp_path / request.param)
    return model, before, stride, tmp_path / request.param


def backbone(path=None, size=64, **architecture):
    return HuggingFaceBackbone(
        VisionSettings(
            backbone="huggingface",
            path=None if path is None else str(path),
            size=size,
            architecture=architecture,
        )
    )


def test_a_saved_model_gives_its_grid_without_class_and_registers(made):
    model, before, stride, folder = made
    # Statistics stay frozen in training; Swin drops whole paths there.
    opened = backbone(folder).train(folder.name != "swin")
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        options = (
            {"interpolate_pos_encoding": True} if folder.name.startswith(("vit", "sig")) else {}
        )
        out = model(pixel_values=pixels, **options).last_hidden_state
        found = opened(pixels)
    expected = out.flatten(2).mT if out.dim() == 4 else out[:, before:]
    assert found.shape == (2, (64 // stride) * (96 // stride), 16)
    assert (opened.channels, opened.cells(64), opened.cells(96)) == (
        16,
        (64 // stride) ** 2,
        (96 // stride) ** 2,
    )
    torch.testing.assert_close(found, expected)


def test_a_whole_model_of_it_learns_is_saved_and_opened(made, tmp_path):
    _, _, _, folder = made
    config = ModelConfig.model_validate(
        {
            "embed_dim": 8,
            "image": {"backbone": "huggingface", "path": str(folder), "size": 64},
            "text": {"encoder": "bigru", "word_channels": 6},
        }
    )
    model = VSEModel(config, 30, 0)
    assert not model.untrained_statistics
    pixels = torch.randn(2, 3, 64, 64)
    draws = torch.rand(2, 1 + model.grid_cells)
    images, _ = model(pixels, torch.randint(1, 30, (2, 4)), torch.tensor([4, 2]), draws)
    (images.square() * torch.rand(2, 8)).sum().backward()
    without = [n for n, p in model.image.named_parameters() if p.grad is None]
    # What makes the pooled vector alone, and what only pretraining uses.
    unused = ("mask_token", ".head.", "model.layernorm." if folder.name == "convnext" else ".head.")
    assert [n for n in without if not any(part in n for part in unused)] == []
    model.eval().save_pretrained(tmp_path / "kept")
    folder.rename(folder.with_name("gone"))
    opened = VSEModel.from_pretrained(tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(opened.encode_images(pixels), model.encode_images(pixels))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_it_is_frozen_and_recomputed_like_the_built_in_ones(kind):
    config = ModelConfig.model_validate(
        {
            "embed_dim": 8,
            "image": {
                "backbone": "huggingface",
                "size": 64,
                "architecture": {"model_type": kind, **KINDS[kind][0]},
            },
            "text": {"encoder": "bigru", "word_channels": 6},
        }
    )
    torch.manual_seed(0)
    model = VSEModel(config, 30, 0)
    groups = model.parameter_groups()
    assert list(groups) == ["heads", "text", "backbone.1"]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    pixels = torch.randn(2, 3, 64, 64)

    def gradients(trained_stages):
        model.zero_grad(set_to_none=True)
        model.trained_stages = trained_stages
        pooled = model(pixels, torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]))[0]
        (pooled * torch.linspace(0, 1, 8)).sum().backward()
        return [p.grad for p in groups["backbone.1"]]

    assert set(gradients(0)) == {None}
    expected = gradients(1)
    assert any(grad is not None for grad in expected)
    if kind == "vit":
        model.recompute_activations()
        torch.testing.assert_close(gradients(None), expected)
    else:
        with pytest.raises(ModelError, match=r"set engine\.activation_checkpointing=false"):
            model.recompute_activations()


def test_the_image_tower_of_a_two_tower_model_is_taken(tmp_path):
    text = {k: v for k, v in TRANSFORMER.items() if k not in ("image_size", "patch_size")}
    config = AutoConfig.for_model("clip", vision_config=TRANSFORMER, text_config=text)
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(backbone(tmp_path)(pixels), expected)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (ResNetForImageClassification, ResNetConfig(embedding_size=8, **CNN)),
        (ViTForImageClassification, ViTConfig(**TRANSFORMER)),
    ],
)
def test_a_classifier_beside_it_is_left_out(tmp_path, kind, config):
    whole = kind(config).eval()
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out = whole.base_model(pixel_values=pixels).last_hidden_state
        expected = out.flatten(2).mT if out.dim() == 4 else out[:, 1:]
        torch.testing.assert_close(backbone(tmp_path)(pixels), expected)


def test_a_new_cnn_is_calibrated_and_its_statistics_are_frozen():
    made = backbone(model_type="resnet", embedding_size=8, **CNN)
    layers = [m for m in made.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert layers
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    calibrate_batchnorm(made, [torch.randn(8, 3, 64, 64)])
    assert all((layer.running_var != 1.0).any() for layer in layers)
    config = ModelConfig(
        image=VisionSettings(
            backbone="huggingface",
            size=64,
            architecture={"model_type": "resnet", "embedding_size": 8, **CNN},
        )
    )
    assert VSEModel(config, 40, 0).untrained_statistics


class TestPixels:
    def spec(self, tmp_path, **described):
        ResNetModel(ResNetConfig(embedding_size=8, **CNN)).save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
        config = VisionSettings(backbone="huggingface", path=str(tmp_path), size=48, antialias=True)
        return config.image_spec()

    def test_they_are_the_folders(self, tmp_path):
        spec = self.spec(tmp_path, image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])
        assert (spec.mean, spec.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
        assert (spec.size, spec.scale, spec.antialias) == (48, 1 / 255, True)

    def test_a_file_that_does_not_say_is_refused(self, tmp_path):
        with pytest.raises(ModelError, match="does not say image_mean and image_std"):
            self.spec(tmp_path, size=3)


class TestErrors:
    def test_every_key_that_disagrees_is_named(self, tmp_path):
        from safetensors.torch import load_file, save_file

        ResNetModel(ResNetConfig(embedding_size=8, **CNN)).save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        weights = load_file(file)
        gone = "embedder.embedder.convolution.weight"
        del weights[gone]
        weights["encoder.more.weight"] = torch.zeros(1)
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ModelError) as error:
            backbone(tmp_path)
        assert f"1 missing: {gone}" in str(error.value)
        assert "1 surplus: encoder.more.weight" in str(error.value)

    def test_a_size_that_the_model_does_not_take(self):
        with pytest.raises(ModelError, match=r"takes no images of model\.image\.size=16"):
            backbone(size=16, model_type="vit", **(TRANSFORMER | {"patch_size": 32}))

    def test_an_unknown_kind(self):
        with pytest.raises(ModelError, match=r"model\.image\.architecture\.model_type is 'vitt'"):
            backbone(model_type="vitt")

    @pytest.mark.parametrize(
        ("image", "said"),
        [
            ({"backbone": "huggingface"}, r"set model\.image\.path to a folder"),
            (
                {"backbone": "huggingface", "path": "p", "weights": "w"},
                r"model\.image\.weights is 'w': is a setting of backbone=tiny, and backbone is hug",
            ),
            (
                {"backbone": "tiny", "path": "p"},
                r"model\.image\.path is 'p': .* take .* or set model\.image\.backbone=huggingface",
            ),
        ],
    )
    def test_settings_that_do_not_go_together(self, image, said):
        raw = {"data": {"path": "d"}, "run": {"dir": "r"}, "model": {"image": image}}
        with pytest.raises(ConfigError, match=said):
            Config.parse(raw)
