import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel


@pytest.fixture
def folder(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_is_opened_bit_for_bit(small_model, folder):
    opened = VSEModel.from_pretrained(folder)
    assert not opened.training
    assert opened.image_spec == small_model.image_spec
    assert (opened.vocab_size, opened.pad_id) == (50, 0)
    expected = small_model.state_dict()
    assert opened.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in opened.state_dict().items())
    pixels = torch.randn(2, 3, 32, 32)
    token_ids, lengths = torch.randint(1, 50, (3, 6)), torch.tensor([6, 2, 4])
    with torch.no_grad():
        small_model.eval()
        assert torch.equal(opened.encode_images(pixels), small_model.encode_images(pixels))
        assert torch.equal(
            opened.encode_captions(token_ids, lengths),
            small_model.encode_captions(token_ids, lengths),
        )


def test_the_folder_needs_nothing_else(small_model, small_config, tmp_path):
    # An encoder and weights from other folders, which are gone when the model is opened.
    small_model.text.encoder.save_pretrained(tmp_path / "bert")
    torch.save(small_model.image.backbone.state_dict(), tmp_path / "backbone.pth")
    image = replace(small_config.image, weights=str(tmp_path / "backbone.pth"))
    bert = str(tmp_path / "bert")
    text = replace(small_config.text, path=bert, tokenizer=bert)
    config = replace(small_config, image=image, text=text)
    model = VSEModel(config, 50, 0)
    model.save_pretrained(tmp_path / "first")
    (tmp_path / "backbone.pth").unlink()
    (tmp_path / "bert").rename(tmp_path / "elsewhere")

    opened = VSEModel.from_pretrained(tmp_path / "first")
    opened.save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path) not in (tmp_path / "first" / "config.json").read_text()


def test_the_tokenizer_travels_along(small_model, tmp_path):
    tokenizer = CaptionTokenizer.train(["a red square", "a blue ring"] * 5, vocab_size=60)
    small_model.save_pretrained(tmp_path, tokenizer=tokenizer)
    opened = CaptionTokenizer.load(tmp_path)
    for left, right in zip(
        opened.encode(["a blue square"]), tokenizer.encode(["a blue square"]), strict=True
    ):
        assert (left == right).all()


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def described(folder):
    return json.loads((folder / "config.json").read_text())


def damage_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "no folder": (lambda f: f.rename(f.with_name("moved")), "no such model folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no such file of weights"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "a foreign folder": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
        "describes no model of this kind",
    ),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "describes no model of this kind"),
    "a later version": (lambda f: edited(f, version=7), "has version 7, this release reads 1"),
    "a missing section": (lambda f: edited(f, model={"embed_dim": 0}), "does not describe a model"),
    "another size": (lambda f: edited(f, vocab_size="many"), "does not describe a model"),
    "another pixel": (lambda f: edited(f, image_spec={"size": 32}), "image specification"),
    "two image sizes": (
        lambda f: edited(f, image_spec=described(f)["image_spec"] | {"size": 64}),
        "image_spec.size is 64 and model.image.size 32",
    ),
    "an unknown backbone": (
        lambda f: edited(f, model=described(f)["model"] | {"image": {"backbone": "vgg"}}),
        "image tower 'vgg' is not known",
    ),
    "cut weights": (damage_truncated, "cannot be read as weights"),
    "no tensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"junk"),
        "cannot be read as weights",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(folder, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as error:
        VSEModel.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_missing_key_is_named(folder):
    path = folder / "config.json"
    described = json.loads(path.read_text())
    del described["pad_id"]
    path.write_text(json.dumps(described))
    with pytest.raises(ModelError, match="'pad_id' is missing"):
        VSEModel.from_pretrained(folder)


def test_weights_of_another_model_are_refused(folder):
    path = folder / "config.json"
    described = json.loads(path.read_text())
    described["model"]["embed_dim"] = 12
    path.write_text(json.dumps(described))
    with pytest.raises(ModelError, match=r"of another shape: .*image\.projection\.weight"):
        VSEModel.from_pretrained(folder)


# What the project needs beside torch, transformers and safetensors, by import name.
BLOCKED = (
    *("pydantic", "nvidia", "deepspeed", "webdataset", "triton", "PIL", "simplejpeg", "typer"),
    *("prometheus_client", "matplotlib", "tensorboard", "psutil", "rich"),
)


@pytest.mark.slow
def test_a_folder_opens_with_torch_transformers_and_safetensors_alone(folder, tmp_path):
    script = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

class Filtered(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path = [Filtered if finder is PathFinder else finder for finder in sys.meta_path]
assert not any(map(find_spec, {BLOCKED!r}))
import torch
from vse_scale import VSEModel
model = VSEModel.from_pretrained({str(folder)!r})
with torch.no_grad():
    images = model.encode_images(torch.ones(1, 3, 32, 32))
    captions = model.encode_captions(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
torch.save((images, captions), {str(tmp_path / "out.pt")!r})
model.save_pretrained({str(tmp_path / "again")!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    images, captions = torch.load(tmp_path / "out.pt")
    model = VSEModel.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(images, model.encode_images(torch.ones(1, 3, 32, 32)))
        ids, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
        assert torch.equal(captions, model.encode_captions(ids, lengths))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
