"""`VSEModel.embed` and ``vse-scale embed`` give the same embeddings of any kind of picture."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vse_scale.cli import app
from vse_scale.data.decode import image_batches
from vse_scale.errors import DatasetError, ModelError
from vse_scale.inputs.pictures import read_picture
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel

TEXTS = ["a red ball", "a blue ball left of a red ring", "two", "ball " * 40]


def painted(width: int = 61, height: int = 45, channels: int = 3) -> np.ndarray:
    """Smooth and sharp parts in all channels."""
    rng = np.random.default_rng(5)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = [(x * 3 + 40 * c) % 256 for c in range(channels - 1)] + [(y * 5) % 256]
    picture = np.stack(planes, axis=-1).astype(np.uint8)
    picture[10:20, 15:40] = rng.integers(0, 256, channels)
    return picture


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture of every kind, that a camera or a drawing program may write."""
    path = tmp_path_factory.mktemp("pictures")
    colour, alpha = Image.fromarray(painted()), Image.fromarray(painted(channels=4), "RGBA")
    colour.save(path / "photo.jpg", quality=88)
    colour.save(path / "fine.jpg", quality=95, subsampling=0)
    colour.save(path / "progressive.jpg", progressive=True)
    colour.save(path / "upright.jpg", exif=rotated())
    colour.convert("L").save(path / "grey.jpg")
    colour.convert("CMYK").save(path / "print.jpg")
    colour.convert("P").save(path / "palette.gif")
    alpha.save(path / "alpha.png")
    Image.fromarray(painted()[..., 0].astype(np.uint16) * 257).save(path / "sixteen.png")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's folder."""
    from vse_scale.config import ModelConfig

    path = tmp_path_factory.mktemp("model")
    tokenizer = CaptionTokenizer.train(TEXTS, vocab_size=80)
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "image": {"backbone": "tiny", "size": 32},
            "text": {"architecture": text | {"intermediate_size": 32}},
        }
    )
    torch.manual_seed(0)
    VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id, 20).save_pretrained(path, tokenizer)
    return path


def run(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def test_pictures_as_the_command_embeds_them(saved, folder, tmp_path):
    run("embed", "--model", saved, "--images", folder, "--out", tmp_path / "out")
    lines = (tmp_path / "out" / "images.jsonl").read_text().splitlines()
    names = [json.loads(line)["id"] for line in lines]
    assert len(names) == 9
    expected = np.load(tmp_path / "out" / "images.npy")
    model = VSEModel.from_pretrained(saved)
    found = model.embed(images=[folder / name for name in names], batch=4)
    assert np.abs(found.numpy() - expected).max() <= 1e-6
    opened = model.embed(images=[Image.open(folder / name) for name in names])
    assert np.abs(opened.numpy() - expected).max() <= 1e-6
    assert len(np.unique(expected.round(4), axis=0)) > 4  # they are not all alike


def test_texts_as_the_command_embeds_them(saved, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    texts = ["--texts", tmp_path / "texts.txt"]
    run("embed", "--model", saved, *texts, "--out", tmp_path / "out")
    expected = np.load(tmp_path / "out" / "captions.npy")
    found = VSEModel.from_pretrained(saved).embed(texts=TEXTS, batch=3)
    assert np.abs(found.numpy() - expected).max() <= 1e-6


class Encoded:
    """JPEGs in memory, as DALI's decoder takes a dataset's."""

    def __init__(self, images: list[bytes]) -> None:
        self._images = images

    def image_bytes(self, image: int) -> np.ndarray:
        return np.frombuffer(self._images[image], np.uint8)

    def name(self, image: int) -> str:
        return str(image)


def check_decoders(jpegs: list[bytes], saved) -> None:
    """Compare with the path of datasets, which is DALI's."""
    model = VSEModel.from_pretrained(saved)
    decoded = image_batches(
        Encoded(jpegs), range(len(jpegs)), model.image_spec,
        batch=8, device=torch.device("cpu"), threads=1,
    )  # fmt: skip
    with torch.no_grad():
        expected = [model.encode_images(model.image_spec.normalise(batch)) for batch in decoded]
    assert (model.embed(images=jpegs) - torch.cat(expected)).abs().max() <= 1e-6


def test_a_jpeg_embeds_as_it_does_in_a_dataset(saved):
    jpegs = []
    for subsampling in (0, 1, 2):
        for size in ((61, 45), (16, 16), (33, 100)):
            file = io.BytesIO()
            Image.fromarray(painted(*size)).save(file, "JPEG", subsampling=subsampling)
            jpegs.append(file.getvalue())
    check_decoders(jpegs, saved)


def test_photos_embed_as_they_do_in_a_dataset(saved, shared):
    files = sorted((shared / "data" / "flickr8k" / "images").glob("*.jpg"))[:24]
    check_decoders([file.read_bytes() for file in files], saved)


def test_arrays_are_taken_as_they_are(saved):
    model = VSEModel.from_pretrained(saved)
    picture = painted()
    turned = np.ascontiguousarray(picture[:, ::-1])[:, ::-1]  # strides that torch refuses
    rows = model.embed(images=[picture, Image.fromarray(picture), turned])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))


def test_similarity_is_of_all_pairs(saved):
    model = VSEModel.from_pretrained(saved).train()
    pictures, texts = [painted(), painted(30, 50)], TEXTS[:3]
    image_rows, text_rows = model.embed(pictures, texts)
    assert image_rows.shape == (2, 24)
    assert text_rows.shape == (3, 24)
    assert image_rows.dtype == text_rows.dtype == torch.float32
    assert not image_rows.requires_grad
    expected = [[float(i @ t) for t in text_rows] for i in image_rows]
    found = model.similarity(pictures, texts)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert model.training  # the mode is left as it was


def test_a_model_without_a_tokenizer_says_so(saved, tmp_path):
    VSEModel.from_pretrained(saved).save_pretrained(tmp_path)
    model = VSEModel.from_pretrained(tmp_path)
    assert model.tokenizer is None
    assert model.embed(images=[painted()]).shape == (1, 24)
    with pytest.raises(ModelError, match="no tokenizer; import it again with --tokenizer DIR"):
        model.embed(texts=TEXTS)


def test_a_region_model_takes_no_pictures(tmp_path):
    from vse_scale.config import ModelConfig

    tokenizer = CaptionTokenizer.train_words(TEXTS, 1)
    config = ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "image": {"backbone": "regions", "region_channels": 8, "max_regions": 5},
            "text": {"encoder": "bigru", "word_channels": 12},
        }
    )
    model = VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(tmp_path, tokenizer)
    model = VSEModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="takes a detector's features"):
        model.embed(images=[painted()])
    assert model.embed(texts=TEXTS).shape == (4, 24)


WRONG = {
    "nothing": ({}, ValueError, "give images, texts, or both"),
    "one text": ({"texts": "a ball"}, ValueError, "texts is 'a ball'; give a list"),
    "one path": ({"images": "a.jpg"}, ValueError, "images is 'a.jpg'; give a list"),
    "no texts": ({"texts": []}, ValueError, "give a list of at least one"),
    "no file": ({"images": ["none.jpg"]}, DatasetError, "none.jpg: cannot be read"),
    "no image": ({"images": [b"text"]}, DatasetError, "the image: is no whole image"),
    "a grey array": ({"images": [np.zeros((9, 9), np.uint8)]}, ValueError, "give .H, W, 3. uint8"),
    "floats": ({"images": [np.zeros((9, 9, 3))]}, ValueError, "float64; give .H, W, 3. uint8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_in_one_line(saved, name):
    given, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as error:
        VSEModel.from_pretrained(saved).embed(**given)
    assert "\n" not in str(error.value)


def test_half_a_photo_is_no_picture():
    file = io.BytesIO()
    Image.fromarray(painted()).save(file, "JPEG")
    with pytest.raises(DatasetError, match="is no whole image"):
        read_picture(file.getvalue()[:700])
