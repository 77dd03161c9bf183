import datetime
import pickle

import numpy as np
import published_files
import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.interchange import published
from vse_scale.interchange.published import import_published
from vse_scale.interchange.published_encoders import image_encoder
from vse_scale.model.vse import VSEModel

TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}


def make(backbone):
    torch.manual_seed(0)
    image = {"backbone": backbone, "size": 64}
    if backbone == "regions":
        image = {"backbone": backbone, "region_channels": 12}
    config = {"embed_dim": 24, "image": image, "text": {"architecture": TEXT}}
    return VSEModel(ModelConfig.model_validate(config), vocab_size=50, pad_id=0).eval()


@pytest.fixture(scope="module")
def grid():
    return make("resnet50")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "region"])
def test_the_published_model_comes_in_and_out(shared, tmp_path, kind):
    path = tmp_path / "model_best.pth"
    expected = published_files.of_reference(shared / "reference", kind, path)

    def embed(model):
        with torch.inference_mode():
            images = model.encode_images(*map(torch.from_numpy, expected["inputs"]))
            ids, lengths = (torch.from_numpy(expected[f"token_{k}"]) for k in ("ids", "lengths"))
            return images, model.encode_captions(ids, lengths)

    imported = import_published(path)
    path.unlink()
    model = imported.model
    found = embed(model)
    for ours, name in zip(found, ("image_embeddings", "caption_embeddings"), strict=True):
        np.testing.assert_allclose(ours, expected[name], rtol=0, atol=1e-5)
    # Every tensor of the file is in the model or named as left out.
    used = len([key for key in model.state_dict() if "position_ids" not in key])
    keys = 1261 + 210 if kind == "grid" else 25 + 210
    assert used + sum(imported.left_out.values()) == keys

    model.save_pretrained(tmp_path / "folder")
    opened = VSEModel.from_pretrained(tmp_path / "folder")
    tensors = model.state_dict()
    assert all(torch.equal(v, tensors[k]) for k, v in opened.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(embed(opened), found, strict=True))
    assert opened.image_spec.size == 512
    assert opened.image_spec.channel_order == ("BGR" if kind == "grid" else "RGB")


def test_a_small_grid_model_comes_back_as_it_was(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth", backbone_source="imagenet_res50")
    imported = import_published(path, size=64)
    assert imported.model.config.image.backbone == "resnet50"
    expected = grid.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in imported.model.state_dict().items())
    assert imported.left_out["the classifier"] == 1
    assert imported.notes == {"file": "best.pth", "epoch": 3, "best_rsum": 500.5}
    assert imported.sources["images"] == "imagenet_res50"


def test_a_small_region_model_comes_back_as_it_was(tmp_path):
    model = make("regions")
    imported = import_published(published_files.of_model(model, tmp_path / "best.pth"))
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in imported.model.state_dict().items())


@pytest.mark.parametrize(
    ("shapes", "source", "asked", "named"),
    [
        ("resnet50", None, None, "resnet50"),
        ("resnet152", "imagenet_res152", None, "resnet152"),
        ("resnext101_32x8d", "wsl", None, "resnext101_32x8d"),
        ("detector", "detector", None, "detector"),
        ("resnet101", "imagenet", None, "resnet101"),
        ("resnet101", None, "detector", "detector"),
    ],
)
def test_each_backbone_is_known_by_its_shapes(shapes, source, asked, named, tmp_path):
    sizes = published_files.backbone_shapes(shapes)
    tensors = {
        f"image.backbone.resnet.{k}": torch.empty(v, device="meta") for k, v in sizes.items()
    }
    options = {} if source is None else {"backbone_source": source, "input_scale_factor": 1.5}
    image = image_encoder(tensors, options, tmp_path, backbone=asked).section
    assert image["backbone"] == named
    assert image["pixels"] == ("detector" if named == "detector" else "imagenet")
    assert image["size"] == (512 if source is None else 384)


def test_shapes_of_two_backbones_need_a_word(tmp_path):
    sizes = published_files.backbone_shapes("resnet101")
    tensors = {
        f"image.backbone.resnet.{k}": torch.empty(v, device="meta") for k, v in sizes.items()
    }
    with pytest.raises(ModelError, match=r"resnet101 or detector.*does not say.*--backbone"):
        image_encoder(tensors, {}, tmp_path)
    with pytest.raises(ModelError, match="--backbone resnet50 does not fit"):
        image_encoder(tensors, {}, tmp_path, backbone="resnet50")


def parts_of(path):
    with torch.serialization.safe_globals([published.argparse.Namespace]):
        return torch.load(path, weights_only=True)["model"]


def test_a_tensor_without_a_place_is_refused(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth")
    parts = parts_of(path)
    parts[1]["module.extra.weight"] = torch.zeros(2)
    published_files.write(path, parts)
    with pytest.raises(ModelError, match=r"1 of its tensors have no place.*text\.extra\.weight"):
        import_published(path)


def test_a_missing_tensor_is_named(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth")
    parts = parts_of(path)
    del parts[1]["module.linear.bias"]
    published_files.write(path, parts)
    with pytest.raises(ModelError, match=r"1 missing: text\.projection\.bias"):
        import_published(path)


def test_a_missing_width_is_named(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth")
    parts = parts_of(path)
    del parts[0]["module.image_encoder.fc.bias"]
    published_files.write(path, parts)
    with pytest.raises(ModelError, match=r"1 missing: image\.projection\.bias"):
        import_published(path)


def test_second_names_must_hold_the_same(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth")
    parts = parts_of(path)
    parts[0]["module.backbone.base.0.weight"] += 1
    published_files.write(path, parts)
    with pytest.raises(ModelError, match=r"backbone\.base\.0\.weight differs from its second name"):
        import_published(path)


class Harmful:
    def __reduce__(self):
        return (print, ("run at loading",))


@pytest.mark.parametrize(
    "value", [Harmful(), datetime.date(2020, 1, 2), pytest.param(None, id="function")]
)
def test_other_classes_are_not_unpickled(value, tmp_path, capsys):
    path = tmp_path / "best.pth"
    holds = {"model": [{}, {}], "opt": value if value is not None else print}
    torch.save(holds, path)
    with pytest.raises(ModelError, match=r"holds a .*only tensors.*Namespace") as error:
        import_published(path)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_the_list_of_allowed_classes_is_left_as_it_was(grid, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    import_published(published_files.of_model(grid, tmp_path / "best.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"junk" * 100, "best.pth: "),
        (pickle.dumps({"model": 3}), "best.pth: "),
        ({"model": 3}, "no pair of state dicts"),
        ({"state_dict": {}}, "no pair of state dicts"),
        ([1, 2], "no pair of state dicts"),
        ({"model": [{"a": 1}, {}]}, "its image part: holds dict, not tensors by name"),
        ({"model": [{}, {}]}, "image.*|backbone"),
    ],
)
def test_other_files_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "best.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message) as error:
        import_published(path)
    assert "\n" not in str(error.value)


def test_a_half_copied_file_is_refused(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        import_published(path)


def test_a_bigru_is_known_by_its_words(grid, tmp_path):
    path = published_files.of_model(grid, tmp_path / "best.pth")
    parts = parts_of(path)
    pool = {k: v for k, v in parts[1].items() if "gpool" in k}
    parts[1] = {"module.embed.weight": torch.zeros(50, 30), **pool}
    for suffix in ("", "_reverse"):
        parts[1][f"module.rnn.weight_ih_l0{suffix}"] = torch.zeros(72, 30)
        parts[1][f"module.rnn.weight_hh_l0{suffix}"] = torch.zeros(72, 24)
        parts[1][f"module.rnn.bias_ih_l0{suffix}"] = torch.zeros(72)
        parts[1][f"module.rnn.bias_hh_l0{suffix}"] = torch.ones(72)
    published_files.write(path, parts, backbone_source="imagenet_res50")
    imported = import_published(path, size=64)
    state = imported.model.state_dict()
    assert torch.equal(state["text.encoder.rnn.bias_hh_l0_reverse"], torch.ones(72))
    assert imported.model.vocab_size == 50
