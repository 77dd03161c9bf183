"""A checkpoint of a run as a model: opened, chosen by the commands, started from."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vse_scale.commands.common import chosen_model
from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError, OutputError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model import folder as model_folder
from vse_scale.model.vse import VSEModel


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder: its best model, and a checkpoint of other weights with the optimizer's."""
    text = {"encoder": "bigru", "word_channels": 6}
    image = {"backbone": "tiny", "size": 32}
    config = ModelConfig.model_validate({"embed_dim": 8, "image": image, "text": text})
    tokenizer = CaptionTokenizer.train(["a red square", "a blue ring"] * 9, 60)
    torch.manual_seed(0)
    model = VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id, 12)
    model.save_pretrained(tmp_path / "model", tokenizer)
    (tmp_path / "config.yaml").write_text("data: {path: d}\n")
    for step in (3, 12):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        state = {f"model.{name}": value + step for name, value in model.state_dict().items()}
        state |= {f"exp_avg.{name}": torch.zeros(1) for name, _ in model.named_parameters()}
        save_file(state, folder / "state.safetensors")
        (folder / "state.json").write_text('{"config": {"model": {"text": {"lora": null}}}}')
    return tmp_path


def test_a_checkpoint_is_opened_with_its_own_weights_and_the_runs_words(run: Path) -> None:
    best = VSEModel.from_pretrained(run)
    opened = VSEModel.from_pretrained(run / "checkpoints" / "step-00000003")
    assert opened.input_spec == best.input_spec
    for name, value in opened.state_dict().items():
        assert torch.equal(value, best.state_dict()[name] + 3), name
    assert opened.tokenizer is not None
    assert opened.tokenizer.encode(["a red ring"])[0].tolist() == (
        best.tokenizer.encode(["a red ring"])[0].tolist()
    )
    started = replace(best.config, init_from=str(run / "checkpoints" / "step-00000003"))
    model = VSEModel(started, best.vocab_size, best.pad_id, 12)
    assert torch.equal(model.text.pool.linear.weight, opened.text.pool.linear.weight)


def test_of_an_averaged_run_it_is_the_average_that_was_validated(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000012"
    best = VSEModel.from_pretrained(run)
    state = load_file(folder / "state.safetensors")
    averaged = {name: value.detach() + 5 for name, value in best.named_parameters()}
    state |= {f"average.{name}": value for name, value in averaged.items()}
    save_file(state | {"average": torch.tensor(12)}, folder / "state.safetensors")
    opened = VSEModel.from_pretrained(folder)
    for name, value in opened.named_parameters():
        assert torch.equal(value, averaged[name]), name
    for name, value in opened.named_buffers():  # these are not averaged
        assert torch.equal(value, best.state_dict()[name] + 12), name
    started = replace(best.config, init_from=str(folder))
    model = VSEModel(started, best.vocab_size, best.pad_id, 12)
    assert torch.equal(model.text.pool.linear.weight, averaged["text.pool.linear.weight"])


def test_adapters_without_peft_name_the_extra_and_a_model_that_needs_none(run, monkeypatch):
    folder = run / "checkpoints" / "step-00000003"
    lora = '{"rank": 2, "alpha": 2.0, "dropout": 0.0, "targets": []}'
    (folder / "state.json").write_text(f'{{"config": {{"model": {{"text": {{"lora": {lora}}}}}}}}}')
    monkeypatch.setattr(model_folder, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"which need the package peft; pip install") as told:
        VSEModel.from_pretrained(folder)
    (extra,) = re.findall(r"vse-scale\[(\w+)\]", str(told.value))
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert any(need.startswith("peft") for need in extras["optional-dependencies"][extra])
    assert "open the run's best model" in str(told.value)
    assert VSEModel.from_pretrained(chosen_model(run, "best")).width == 8


def test_commands_choose_it_by_name_or_folder(run: Path) -> None:
    three = run / "checkpoints" / "step-00000003"
    assert chosen_model(run, None) == run
    assert chosen_model(run, "best") == run / "model"
    assert chosen_model(run, "step-3") == chosen_model(run / "model", "step-00000003") == three
    assert chosen_model(None, str(three)) == three
    with pytest.raises(OutputError, match=r"step-4: .* has step-3, step-12, and best; give one"):
        chosen_model(run, "step-4")
    with pytest.raises(OutputError, match="no such folder; give best or step-N"):
        chosen_model(run, "last")
    with pytest.raises(OutputError, match="needs the folder of its run"):
        chosen_model(None, "best")


def test_a_checkpoint_apart_from_its_run_says_what_it_lacks(run: Path) -> None:
    away = (run / "checkpoints" / "step-00000003").rename(run.parent / "away")
    with pytest.raises(ModelError, match="leave the checkpoint in its run"):
        VSEModel.from_pretrained(away)
