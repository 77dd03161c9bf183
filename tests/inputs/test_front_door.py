"""The functions of `vse_scale` itself do what the commands do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vse_scale
from vse_scale.cli import app
from vse_scale.errors import ConfigError, ModelError
from vse_scale.inputs.tokens import CaptionTokenizer


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    """An untrained model of the drawn scenes."""
    from vse_scale.config import ModelConfig
    from vse_scale.data.shards import ShardDataset

    path = tmp_path_factory.mktemp("model")
    dataset = ShardDataset(scenes, "train")
    texts = [c.text for row in range(len(dataset)) for c in dataset.record(row).captions]
    tokenizer = CaptionTokenizer.train(texts, vocab_size=120)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "image": {"backbone": "tiny", "size": 32},
            "text": {"architecture": text | {"intermediate_size": 32}},
        }
    )
    torch.manual_seed(0)
    model = vse_scale.VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(path, tokenizer)
    return path


def command(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def test_evaluate_finds_what_the_command_finds(folder, scenes, tmp_path):
    command(
        "eval", "--model", folder, "--data", scenes, "--split", "val",
        "--json", tmp_path / "eval.json",
    )  # fmt: skip
    expected = json.loads((tmp_path / "eval.json").read_text())
    for model in (folder, vse_scale.VSEModel.from_pretrained(folder)):
        found = vse_scale.evaluate(model, scenes, split="val").to_dict()
        assert {key: expected[key] for key in found} == found


def test_embed_finds_what_the_command_finds(folder, scenes, tmp_path):
    out = tmp_path / "out"
    command("embed", "--model", folder, "--data", scenes, "--split", "val", "--out", out)
    images, captions = vse_scale.embed(folder, data=scenes, split="val")
    assert np.abs(images.numpy() - np.load(out / "images.npy")).max() <= 1e-6
    assert np.abs(captions.numpy() - np.load(out / "captions.npy")).max() <= 1e-6
    lines = (out / "captions.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert (vse_scale.embed(folder, texts=texts) - captions).abs().max() <= 1e-6


def test_wrong_calls_are_refused(folder, scenes, tmp_path):
    with pytest.raises(ValueError, match="either data, or images and texts"):
        vse_scale.embed(folder, texts=["a ball"], data=scenes)
    with pytest.raises(ConfigError, match="protocol"):
        vse_scale.evaluate(folder, scenes, split="val", protocol="coco-2k")
    with pytest.raises(ModelError, match="no such model folder"):
        vse_scale.embed(tmp_path / "none", texts=["a ball"])


def test_names_are_found_on_demand():
    assert set(vse_scale.__all__) <= {*dir(vse_scale), "Config", "VSEModel"}
    from vse_scale.config import Config

    assert vse_scale.Config is Config
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        vse_scale.fit  # noqa: B018
