"""A blueprint has the parameters of the model, wherever its weights would come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import BertConfig

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.model.vse import VSEModel


def shapes(model: VSEModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_shapes_are_those_of_the_model(small_run: Path) -> None:
    config = Config.load(small_run)
    laid_out, assumed = blueprint(config)
    assert not assumed
    assert all(parameter.is_meta for parameter in laid_out.parameters())
    assert shapes(laid_out) == shapes(VSEModel(config.model, config.model.text.vocab_size, 0))


def test_an_encoder_from_a_folder_and_weights_that_are_not_there(
    small_run: Path, tmp_path: Path
) -> None:
    kind = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertConfig(vocab_size=120, intermediate_size=32, **kind).save_pretrained(tmp_path / "bert")
    text = replace(Config.load(small_run).model.text, path=str(tmp_path / "bert"), architecture={})
    made = Config.load(small_run, ["model.image.weights=not/here.pth"])
    given = made.model_copy(update={"model": replace(made.model, text=text)})
    assert shapes(blueprint(given)[0]) == shapes(blueprint(Config.load(small_run))[0])


def test_what_is_not_there_is_assumed_and_said(small_run: Path) -> None:
    raw = Config.load(small_run).model_dump()
    raw["model"]["text"] |= {"path": "no/such/bert", "architecture": {}}
    _, (assumed,) = blueprint(Config.parse(raw))
    assert "no/such/bert" in assumed
