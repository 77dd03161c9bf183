"""The inputs' specification: kept in a model's folder, refused in one line where it is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec, RegionSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel

PIXELS = ImageSpec.preset("imagenet", 32)


@pytest.mark.parametrize(
    "spec", [InputSpec(PIXELS, max_tokens=40), InputSpec(regions=RegionSpec(2048, 36))]
)
def test_json_brings_it_back(spec):
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


WRONG = {
    "a list": ([], r"input specification: is \[\], not fields by name"),
    "nothing of images": ({"max_tokens": 7}, "give either pixels or regions"),
    "no tokens": (
        {"pixels": PIXELS.to_dict(), "max_tokens": 0},
        "max_tokens is 0: give a number of tokens, at least 1",
    ),
    "an unknown field": (
        {"pixels": PIXELS.to_dict(), "max_words": 7},
        "max_words is 7: no such field",
    ),
    "no channels": (
        {"regions": {"channels": 0, "most": 36}},
        "region specification: channels is 0: give a number of channels, at least 1",
    ),
    "half of the regions": ({"regions": {"channels": 8}}, "region specification: most is missing"),
    "a flat pixel": (
        {"pixels": PIXELS.to_dict() | {"std": [1, 0, 1]}},
        "image specification: std is .*: give three numbers, none 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_is_refused(name):
    raw, message = WRONG[name]
    with pytest.raises(ModelError, match=message):
        InputSpec.from_dict(raw)


def test_the_text_encoder_bounds_the_tokens(small_config):
    assert VSEModel(small_config, 50, 0).input_spec.max_tokens == 20
    assert VSEModel(small_config, 50, 0, max_tokens=9).input_spec.max_tokens == 9
    text = {"encoder": "bigru", "word_channels": 12}
    words = ModelConfig.read({**small_config.to_dict(), "text": text})
    assert VSEModel(words, 50, 0, max_tokens=500).input_spec.max_tokens == 500


@pytest.fixture
def edited(small_model, tmp_path):
    """Returns a folder of the model whose config.json was changed by a function."""

    def make(change):
        small_model.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))
        return tmp_path

    return make


def test_it_is_kept_with_the_model(small_model, tmp_path):
    small_model.input_spec = replace(
        small_model.input_spec, pixels=replace(PIXELS, antialias=True), max_tokens=7
    )
    small_model.save_pretrained(tmp_path)
    assert VSEModel.from_pretrained(tmp_path).input_spec == small_model.input_spec


def test_a_folder_of_before_opens_and_says_so_once(edited, small_model, caplog):
    folder = edited(lambda described: described.pop("input_spec"))
    with caplog.at_level(logging.INFO, "vse_scale"):
        opened = VSEModel.from_pretrained(folder)
    assert opened.input_spec == small_model.input_spec  # 20 positions bound the assumed 128
    (line,) = caplog.messages
    assert "20 tokens are assumed" in line
    assert "vse-scale export" in line


def test_a_folder_of_before_is_opened_as_its_run_was_trained(edited, tmp_path):
    folder = edited(lambda described: described.pop("input_spec"))
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    (run / "config.yaml").write_text("data: {max_caption_tokens: 11}\n")
    assert VSEModel.from_pretrained(run / "model").input_spec.max_tokens == 11


@pytest.mark.parametrize("change", [{"max_tokens": 21}, {"regions": {"channels": 8, "most": 3}}])
def test_a_folder_that_contradicts_itself_is_refused(edited, change):
    folder = edited(lambda described: described["input_spec"].update(change))
    with pytest.raises(ModelError, match=r"config\.json: .*(must be equal|either)"):
        VSEModel.from_pretrained(folder)


def test_captions_that_are_cut_are_counted_once(caplog):
    tokenizer = CaptionTokenizer.train(["a red ball", "a blue ball"] * 5, vocab_size=80)
    with caplog.at_level(logging.INFO, "vse_scale"):
        tokenizer.report_cut(["a ball"], 3, 4)  # exactly four tokens, none is cut
        tokenizer.report_cut(["a ball", "a red ball", "a blue ball"], 8, 4)
        tokenizer.report_cut(["a red ball"], 1, 4)
    (line,) = caplog.messages
    assert line.startswith("2 of 8 captions (25.0%) have more than 4 tokens")
