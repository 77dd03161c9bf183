import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.model.vse import VSEModel, unit_length

# Where a published checkpoint keeps what our names stand for.
PUBLISHED_NAMES = {
    "image.backbone.": "image:module.backbone.resnet.",
    "image.projection.": "image:module.image_encoder.fc.",
    "image.pool.": "image:module.image_encoder.gpool.",
    "text.encoder.": "text:module.bert.",
    "text.projection.": "text:module.linear.",
    "text.pool.": "text:module.gpool.",
}


def made_batch():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(3, 3, 32, 32, generator=generator),
        torch.randint(1, 50, (6, 8), generator=generator),
        torch.tensor([8, 3, 5, 8, 2, 7]),
    )


@pytest.mark.slow
def test_embeddings_are_those_of_the_published_model(shared):
    folder = shared / "reference"
    spec = importlib.util.spec_from_file_location("weights", folder / "reference_weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    keys = json.loads((folder / "keys_grid.json").read_text())
    expected = np.load(folder / "expected_grid.npz")

    config = ModelConfig.model_validate({"image": {"backbone": "detector", "pixels": "detector"}})
    model = VSEModel(config, vocab_size=30522, pad_id=0).eval()
    for name, value in model.state_dict().items():
        ours = next(prefix for prefix in PUBLISHED_NAMES if name.startswith(prefix))
        published = PUBLISHED_NAMES[ours] + name.removeprefix(ours)
        side, key = published.split(":")
        array = weights.tensor_for(published, keys[side][key], int(expected["weights_seed"]))
        value.copy_(torch.from_numpy(array))

    draws = np.random.RandomState(int(expected["images_seed"])).standard_normal((2, 3, 160, 128))
    with torch.inference_mode():
        images = model.encode_images(torch.from_numpy(draws.astype(np.float32)))
        captions = model.encode_captions(
            torch.from_numpy(expected["token_ids"]), torch.from_numpy(expected["token_lengths"])
        )
    np.testing.assert_allclose(images, expected["image_embeddings"], atol=1e-6)
    np.testing.assert_allclose(captions, expected["caption_embeddings"], atol=1e-6)


def test_forward_is_both_encoders(small_model):
    pixels, token_ids, lengths = made_batch()
    images, captions = small_model(pixels, token_ids, lengths)
    assert images.shape == (3, 24)
    assert captions.shape == (6, 24)
    torch.testing.assert_close(small_model.encode_images(pixels), images)
    torch.testing.assert_close(small_model.encode_captions(token_ids, lengths), captions)


def test_evaluation_gives_what_training_gives_without_dropout(small_model):
    batch = made_batch()
    training = small_model(*batch)
    with torch.no_grad():
        evaluation = small_model.eval()(*batch)
    for left, right in zip(training, evaluation, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("autocast", [False, True])
def test_embeddings_are_float32_and_of_unit_length(small_model, autocast):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        embeddings = small_model(*made_batch())
    for rows in embeddings:
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-6)


def test_the_dropping_draws_reach_the_grid(small_model):
    batch = made_batch()
    draws = torch.full((3, 1 + small_model.grid_cells), 0.9)
    draws[:, 1:8] = 0.0
    assert not torch.allclose(small_model(*batch, draws)[0], small_model(*batch)[0])
    torch.testing.assert_close(small_model(*batch, draws)[1], small_model(*batch)[1])


def test_every_parameter_is_in_one_group_and_learns(small_model):
    groups = small_model.parameter_groups()
    listed = [id(p) for group in groups.values() for p in group]
    assert sorted(listed) == sorted(id(p) for p in small_model.parameters())
    names = {id(p): name for name, p in small_model.named_parameters()}
    towers = {name: {names[id(p)].split(".")[1] for p in group} for name, group in groups.items()}
    assert towers == {
        "heads": {"projection", "pool"},
        "text": {"encoder"},
        "backbone.1": {"backbone"},
        "backbone.2": {"backbone"},
        "backbone.3": {"backbone"},
    }
    images, captions = small_model(*made_batch())
    (images.sum() + captions.sum()).backward()
    assert [name for name, p in small_model.named_parameters() if p.grad is None] == []


def test_a_frozen_backbone_learns_nothing(small_model):
    small_model.trained_stages = 0
    images, captions = small_model(*made_batch())
    (images.sum() + captions.sum()).backward()
    groups = small_model.parameter_groups()
    assert all(p.grad is None for p in small_model.image.backbone.parameters())
    assert all(p.grad is not None for p in groups["heads"] + groups["text"])


def test_pooling_weights_are_those_that_pool(small_model):
    for side, pool in (("image", small_model.image.pool), ("text", small_model.text.pool)):
        weights = small_model.pooling_weights(side, 5)
        assert weights.shape == (5,)
        assert weights.sum().item() == pytest.approx(1.0)
        values = torch.tensor([3.0, 9.0, 1.0, 7.0, 5.0])
        pooled = pool(values[None, :, None], torch.tensor([5]))
        expected = weights @ values.sort(descending=True).values
        torch.testing.assert_close(pooled[0, 0], expected)


def test_the_specification_is_the_configured_one(small_model, small_config):
    assert small_model.image_spec.size == 32
    assert small_model.image_spec.channel_order == "RGB"
    assert small_model.grid_cells == 16
    detector = replace(small_config, image=replace(small_config.image, pixels="detector"))
    assert VSEModel(detector, 50, 0).image_spec.channel_order == "BGR"


def test_unit_length_survives_zeros():
    rows = torch.zeros(2, 3, requires_grad=True)
    unit_length(rows).sum().backward()
    assert rows.grad.isfinite().all()


def test_a_model_starts_from_another(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    config = replace(small_config, init_from=str(tmp_path))
    torch.manual_seed(9)
    started = VSEModel(config, 50, 0)
    for name, value in started.state_dict().items():
        assert torch.equal(value, small_model.state_dict()[name])
    other = replace(config, embed_dim=12)
    with pytest.raises(ModelError, match=r"of another shape: .*image\.projection\.weight"):
        VSEModel(other, 50, 0)


class TestRegionModel:
    @pytest.fixture
    def region_model(self, small_config):
        image = {"backbone": "regions", "region_channels": 12, "max_regions": 5}
        torch.manual_seed(0)
        config = ModelConfig.model_validate(small_config.to_dict() | {"image": image})
        return VSEModel(config, vocab_size=50, pad_id=0)

    def test_lengths_are_optional(self, region_model):
        region_model.eval()
        regions = torch.randn(3, 5, 12)
        everything = region_model.encode_images(regions)
        torch.testing.assert_close(
            region_model.encode_images(regions, torch.tensor([5, 5, 5])), everything
        )
        some = region_model.encode_images(regions, torch.tensor([5, 2, 5]))
        torch.testing.assert_close(some[1:2], region_model.encode_images(regions[1:2, :2]))

    def test_all_of_it_learns_and_none_of_it_is_a_backbone(self, region_model):
        _, token_ids, lengths = made_batch()
        images, captions = region_model(
            torch.randn(3, 5, 12), token_ids, lengths, torch.rand(3, 6), torch.tensor([5, 2, 4])
        )
        (images.square().sum() + images.sum() + captions.sum()).backward()
        assert [name for name, p in region_model.named_parameters() if p.grad is None] == []
        groups = region_model.parameter_groups()
        assert groups.keys() == {"heads", "text"}
        assert sum(map(len, groups.values())) == len(list(region_model.parameters()))

    def test_it_is_saved_and_opened(self, region_model, tmp_path):
        region_model.eval().save_pretrained(tmp_path)
        regions = torch.randn(2, 5, 12)
        with torch.no_grad():
            assert torch.equal(
                VSEModel.from_pretrained(tmp_path).encode_images(regions),
                region_model.encode_images(regions),
            )

    def test_pixels_have_no_lengths(self, small_model):
        with pytest.raises(ValueError, match="takes pixels"):
            small_model.encode_images(torch.randn(1, 3, 32, 32), torch.tensor([4]))


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (3, 32, 32), (2, 1, 32, 32)])
def test_images_of_another_shape_are_refused(small_model, shape):
    with pytest.raises(ValueError, match=r"images are .*; this model takes \(N, 3, H, W\)"):
        small_model.encode_images(torch.zeros(shape))
