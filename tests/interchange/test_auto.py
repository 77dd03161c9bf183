"""An exported folder opens by transformers' Auto classes, and gives the model's own embeddings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel

TEXTS = ["a red ball", "a blue ring " * 20, "red", ""]


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (40, 50 + 9 * n, 3), dtype=np.uint8)) for n in range(3)
    ]


@pytest.fixture(scope="module")
def auto():
    import transformers

    import vse_scale.interchange.auto  # noqa: F401  # registers

    return transformers


def test_the_methods_of_clip_give_the_models_embeddings(auto, folder, pictures):
    opened, model = auto.AutoModel.from_pretrained(folder), VSEModel.from_pretrained(folder)
    inputs = auto.AutoProcessor.from_pretrained(folder)(text=TEXTS, images=pictures)
    images, texts = model.embed(pictures, TEXTS)
    with torch.no_grad():
        found = opened(**inputs)
        alone = opened.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        seen = opened.get_image_features(inputs["pixel_values"])
    assert (alone.pooler_output - texts).abs().max() <= 1e-5
    assert (seen.pooler_output - images).abs().max() <= 1e-5
    assert (found.logits_per_image - images @ texts.T).abs().max() <= 1e-5
    assert (found.text_embeds - texts).abs().max() <= 1e-5
    assert not opened.training
    assert opened.config.projection_dim == opened.config.model["embed_dim"] == model.width


def test_the_lines_of_the_page_run(auto, folder, pictures, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    folder.rename(tmp_path / "models" / "mine")
    pictures[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "interchange.md").read_text(encoding="utf-8")
    (block, *_) = re.findall(r"```py\n(.*?)```", page.partition("## transformers")[2], re.S)
    exec(block, names := {})
    assert names["scores"].shape == (1, 2)
    assert torch.allclose(names["images"] @ names["texts"].T, names["scores"], atol=1e-6)


def test_its_tokenizer_by_its_own_name_gives_the_same_embeddings(auto, folder):
    """huggingface/transformers#33109: a folder without ``model_type`` opens by no Auto class."""
    words = auto.AutoTokenizer.from_pretrained(folder)
    given = words(TEXTS[:3:2], padding=True, return_tensors="pt")
    opened = auto.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        kept = ("input_ids", "attention_mask")
        rows = opened.get_text_features(**{key: given[key] for key in kept}).pooler_output
    assert (rows - VSEModel.from_pretrained(folder).embed(texts=TEXTS[:3:2])).abs().max() <= 1e-5
    flipped = {key: given[key].flip(1) for key in kept}
    with pytest.raises(ValueError, match="padding stands before tokens; set padding_side='right'"):
        opened.get_text_features(**flipped)


def test_what_it_saves_is_a_model_folder_again(auto, folder, tmp_path):
    auto.AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_in_8bit": True}, "load_in_8bit: has no effect on a model of vse_scale"),
        ({"device_map": {"image": "cpu", "text": "cpu"}}, "lies on one device; name it"),
    ],
)
def test_an_option_without_effect_is_refused(auto, folder, options, message):
    with pytest.raises(ValueError, match=message):
        auto.AutoModel.from_pretrained(folder, **options)


def test_the_model_of_a_run_is_its_subfolder(auto, folder):
    opened = auto.AutoModel.from_pretrained(folder.parent, subfolder=folder.name)
    assert opened.vse.width == VSEModel.from_pretrained(folder).width


def test_dtype_and_device_are_taken(auto, folder):
    opened = auto.AutoModel.from_pretrained(folder, dtype="bfloat16", device_map="cpu")
    assert {value.dtype for value in opened.parameters()} == {torch.bfloat16}


def test_random_weights_of_a_configuration(auto, folder):
    config = auto.AutoConfig.from_pretrained(folder)
    made = auto.AutoModel.from_config(config)
    assert {n: v.shape for n, v in made.vse.state_dict().items()} == {
        n: v.shape for n, v in VSEModel.from_pretrained(folder).state_dict().items()
    }


def test_a_region_model_takes_features(auto, region_folder):
    opened = auto.AutoModel.from_pretrained(region_folder)
    regions, lengths = torch.rand(2, 5, 12), torch.tensor([5, 3])
    with torch.no_grad():
        rows = opened.get_image_features(regions, lengths).pooler_output
        assert torch.equal(rows, opened.vse.encode_images(regions, lengths))
    processor = auto.AutoProcessor.from_pretrained(region_folder)
    with pytest.raises(ModelError, match="give them to get_image_features"):
        processor(images=["dog.jpg"])
    listed = json.loads((region_folder / "sentence_bert_config.json").read_text())
    assert list(listed["modality_config"]) == ["text"]


@pytest.fixture
def region_folder(small_config, tmp_path):
    raw = small_config.to_dict() | {"image": {"backbone": "regions", "region_channels": 12}}
    tokenizer = CaptionTokenizer.train(["a red ball", "a blue ring"] * 5, vocab_size=60)
    model = VSEModel(type(small_config).read(raw), tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(tmp_path / "regions", tokenizer)
    return tmp_path / "regions"


@pytest.mark.slow
def test_without_the_import_trust_remote_code_opens_it(folder, tmp_path):
    """UKPLab/sentence-transformers#3935: a folder's code asks for trust, a package's too."""
    code = (
        "import sys, torch; from transformers import AutoModel\n"
        "print(type(AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert made.stdout.split() == ["VSEAutoModel"], made.stderr
