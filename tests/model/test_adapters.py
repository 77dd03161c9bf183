"""What of the towers trains: adapters, last layers, or nothing; and what an export holds.

After huggingface/peft#1836 (a merged model answers otherwise than the adapted one) and the
reports of frozen encoders whose dropout went on (lightly-ai/lightly#1438).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vse_scale.config import ModelConfig
from vse_scale.errors import ModelError
from vse_scale.model import adapters
from vse_scale.model.vse import VSEModel
from vse_scale.training.optim import build_optimizer

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VIT = SIZES | {"model_type": "vit", "image_size": 32, "patch_size": 8}


def config(text: dict | None = None, image: dict | None = None) -> ModelConfig:
    vision = {"backbone": "huggingface", "size": 32, "architecture": VIT}
    return ModelConfig.model_validate(
        {
            "embed_dim": 24,
            "dropout": 0.3,
            "image": vision | (image or {}),
            "text": {"vocab_size": 120, "architecture": SIZES} | (text or {}),
        }
    )


def made(**sides) -> VSEModel:
    torch.manual_seed(0)
    return VSEModel(config(**sides), 60, 0, 12)


def embedded(model: VSEModel) -> torch.Tensor:
    torch.manual_seed(1)
    images, ids = torch.randn(3, 3, 32, 32), torch.randint(1, 60, (3, 7))
    with torch.no_grad():
        return torch.cat(model.eval()(images, ids, torch.tensor([7, 3, 5])))


def train_some(model: VSEModel, steps: int = 4) -> None:
    from vse_scale.config import OptimConfig

    optimizer = build_optimizer(
        model.parameter_groups(), OptimConfig(lr=0.01), torch.device("cpu")
    )  # fmt: skip
    model.train()
    for _ in range(steps):
        images, captions = model(
            torch.randn(4, 3, 32, 32), torch.randint(1, 60, (4, 7)), torch.full((4,), 7)
        )
        (images * captions).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def moved(model: VSEModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }


BIGRU = {"encoder": "bigru", "architecture": None, "vocab_size": None}
LORA = {"rank": 4, "alpha": 8.0, "targets": ["query", "value"]}


@pytest.fixture
def adapted() -> VSEModel:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'vse-scale[lora]'")
    return made(text={"lora": LORA}, image={"lora": LORA | {"targets": ["q_proj", "v_proj"]}})


def test_only_adapters_of_the_encoders_move(adapted: VSEModel) -> None:
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    train_some(adapted)
    changed = moved(adapted, before)
    inside = {name for name in changed if ".encoder." in name or ".backbone." in name}
    assert inside
    assert all(".lora_A." in name or ".lora_B." in name for name in inside)
    assert len(inside) == 2 * 2 * 2 * 3  # sides, layers of each kind, factors, layers
    assert {"image.projection.weight", "text.projection.weight"} < changed


def test_an_export_is_the_adapted_model_without_adapters(adapted: VSEModel, tmp_path: Path) -> None:
    train_some(adapted)
    expected = embedded(adapted)
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.save_pretrained(tmp_path / "model")
    assert not moved(adapted, before), "the run goes on with its adapters"
    opened = VSEModel.from_pretrained(tmp_path / "model")
    assert not adapters.has_adapters(opened)
    assert opened.config.text.lora is None
    assert opened.config.image.lora is None
    assert (expected - embedded(made())).abs().max() > 1e-3, "the adapters have not moved enough"
    torch.testing.assert_close(embedded(opened), expected, rtol=0, atol=1e-5)


def test_merging_in_place_is_the_same(adapted: VSEModel) -> None:
    train_some(adapted)
    expected, state = embedded(adapted), adapters.merged_state(adapted)
    adapters.merge(adapted)
    torch.testing.assert_close(embedded(adapted), expected, rtol=0, atol=1e-5)
    assert adapted.state_dict().keys() == state.keys() == made().state_dict().keys()


def test_unknown_targets_are_refused_with_those_that_there_are() -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'vse-scale[lora]'")
    with pytest.raises(
        ModelError, match=r"model\.text\.lora: .*targets to some of .*query"
    ) as caught:
        made(text={"lora": LORA | {"targets": ["nothing"]}})
    assert "\n" not in str(caught.value)
    made(text={"lora": LORA | {"targets": ["query"]}})  # the remedy


def test_a_missing_peft_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        ModelError, match=r"model\.text\.lora needs .*pip install 'vse-scale\[lora\]'"
    ):
        made(text={"lora": LORA})


@pytest.mark.parametrize("side", ["text", "image"])
def test_a_frozen_encoder_stays_and_is_in_evaluation(side: str) -> None:
    model = made(**{side: {"frozen": True}})
    part = model.text.encoder if side == "text" else model.image.backbone
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_some(model)
    inside = f"{side}.{'encoder' if side == 'text' else 'backbone'}."
    changed = moved(model, before)
    assert not {name for name in changed if name.startswith(inside)}
    assert f"{side}.projection.weight" in changed
    assert not any(module.training for module in part.modules())
    assert model.training


@pytest.mark.parametrize("side", ["text", "image"])
def test_the_last_layers_alone_train(side: str) -> None:
    model = made(**{side: {"train_last": 1}})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_some(model)
    inside = f"{side}.{'encoder' if side == 'text' else 'backbone'}."
    changed = {name for name in moved(model, before) if name.startswith(inside)}
    assert changed
    layers = {name for name in changed if ".layer." in name or ".layers." in name}
    assert all(".layer.2." in name or ".layers.2." in name for name in layers)
    assert layers
    assert not {name for name in changed if "embeddings" in name}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"frozen": True, "train_last": 1}, r"text\.frozen and model\.text\.train_last are"),
        (
            {"lora": LORA, "train_last": 1},
            r"text\.train_last and model\.text\.lora are both",
        ),
        ({"train_last": 9}, r"model\.text\.train_last is 9, and the encoder has 3 layers"),
        (
            {"encoder": "bigru", "train_last": 1, "architecture": None, "vocab_size": None},
            "no layers",
        ),
    ],
)
def test_contradictions_are_refused(text: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        made(text=text)


def test_what_does_not_train_has_no_place_in_the_optimizer() -> None:
    from vse_scale.config import OptimConfig

    model = made(text={"frozen": True})
    optimizer = build_optimizer(model.parameter_groups(), OptimConfig(), torch.device("cpu"))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.text.encoder.parameters()}
