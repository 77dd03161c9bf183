"""A blueprint has the parameters of the model, wherever its weights would come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig

from vse_scale.config import Config
from vse_scale.errors import ModelError
from vse_scale.model.blueprint import blueprint
from vse_scale.model.vse import VSEModel


def shapes(model: VSEModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_shapes_are_those_of_the_model(small_run: Path) -> None:
    config = Config.load(small_run).model
    laid_out = blueprint(config)
    assert all(parameter.is_meta for parameter in laid_out.parameters())
    assert shapes(laid_out) == shapes(VSEModel(config, config.text.vocab_size, 0))


def test_an_encoder_from_a_folder_and_weights_that_are_not_there(
    small_run: Path, tmp_path: Path
) -> None:
    kind = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertConfig(vocab_size=120, intermediate_size=32, **kind).save_pretrained(tmp_path / "bert")
    elsewhere = ["model.image.weights=not/here.pth", f"model.text.path={tmp_path / 'bert'}"]
    given = Config.load(small_run, elsewhere).model
    assert shapes(blueprint(given)) == shapes(blueprint(Config.load(small_run).model))


def test_no_such_folder(small_run: Path) -> None:
    with pytest.raises(ModelError, match="no/such/bert"):
        blueprint(Config.load(small_run, ["model.text.path=no/such/bert"]).model)
