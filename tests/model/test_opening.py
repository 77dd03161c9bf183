"""Encoders of transformers as people have them: joint, masking, with own code, too large."""

from __future__ import annotations

import contextlib
import json
import logging
import zipfile
from pathlib import Path

import architectures
import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from vse_scale.config import ModelConfig
from vse_scale.console import log
from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.processor import read_pixels
from vse_scale.model.towers.vision import VisionSettings
from vse_scale.model.vse import VSEModel
from vse_scale.model.weights import load_exactly, read_state_dict

SAMPLE = ["clip", "blip", "vit_mae", "roberta", "squeezebert", "gpt2", "convnext", "fnet"]
REFUSED = {("fnet", "text"): "gives a caption other values beside longer ones"}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_an_architecture_trains_and_opens_the_same_or_is_refused(kind: str) -> None:
    found = architectures.try_kind(kind)
    assert found
    for one in found:
        wanted = "refused" if (kind, one.side) in REFUSED else "works"
        assert (one.what, one.kind) == (wanted, kind), one.line
        assert REFUSED.get((kind, one.side), "") in one.line


@pytest.mark.soak
@pytest.mark.parametrize("kind", sorted(MODEL_MAPPING_NAMES))
def test_every_architecture_works_or_is_refused(kind: str) -> None:
    for one in architectures.try_kind(kind):
        assert one.what != "failed", one.line


def text_model(**text) -> VSEModel:
    image = {"backbone": "tiny", "size": 32}
    config = ModelConfig.model_validate({"embed_dim": 8, "image": image, "text": text})
    return VSEModel(config, 50, 0)


def saved(folder: Path, kind: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip"])
def test_the_text_tower_of_a_joint_model_is_taken_whole(tmp_path, kind) -> None:
    # allenai/allennlp#5731: a CLIP folder has its hidden_size in text_config.
    text = TINY | {"vocab_size": 60, "max_position_embeddings": 20, "projection_dim": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = TINY | {"image_size": 32, "patch_size": 16}
    whole = saved(tmp_path, kind, text_config=text, vision_config=vision)
    model = text_model(path=str(tmp_path))
    assert model.input_spec.max_tokens == 20
    ids, mask = torch.randint(3, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    with torch.no_grad():
        found = model.text.encoder.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = whole.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_a_masked_autoencoder_embeds_all_patches_and_always_alike(tmp_path) -> None:
    # huggingface/transformers#20328: its model masks three quarters by chance, in evaluation too.
    saved(tmp_path, "vit_mae", **TINY, image_size=64, patch_size=16)
    image = {"backbone": "huggingface", "path": str(tmp_path), "size": 64}
    text = {"encoder": "bigru", "word_channels": 6}
    config = ModelConfig.model_validate({"embed_dim": 8, "image": image, "text": text})
    model = VSEModel(config, 30, 0).eval()
    assert model.grid_cells == 16
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.encode_images(pixels), model.encode_images(pixels))


@pytest.mark.parametrize(("pad", "positions"), [(1, 28), (3, 26)])
def test_positions_that_count_from_the_padding_on(tmp_path, pad: int, positions: int) -> None:
    # huggingface/transformers#14243; rinnakk/japanese-pretrained-models#3 has padding 3.
    saved(tmp_path, "roberta", **TINY, vocab_size=60, max_position_embeddings=30, pad_token_id=pad)
    model = text_model(path=str(tmp_path))
    assert model.text.positions == model.input_spec.max_tokens == positions
    ids = torch.full((1, positions), 7)
    with torch.no_grad():
        assert model.encode_captions(ids, torch.tensor([positions])).isfinite().all()


class TestOwnCode:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt was shown"))
        code = tmp_path / "modeling_x.py"
        code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        (tmp_path / "configuration_x.py").write_text(code.read_text())
        named = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
        described = {"model_type": "private_bert", "auto_map": named}
        (tmp_path / "config.json").write_text(json.dumps(described))
        yield tmp_path
        assert not (tmp_path / "ran").exists()

    def test_it_is_named_and_never_run(self, folder) -> None:
        with pytest.raises(ModelError, match=r"\(auto_map: configuration_x\.XConfig\)") as error:
            text_model(path=str(folder))
        assert "\n" not in str(error.value)
        with pytest.raises(ModelError, match="never run"):
            VisionSettings(backbone="huggingface", path=str(folder)).weightless()

    def test_a_tokenizer_with_code_is_refused(self, folder) -> None:
        named = {"AutoTokenizer": ["configuration_x.X", None]}
        described = {"tokenizer_class": "X", "auto_map": named}
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
        with pytest.raises(ModelError, match="cannot be opened as a tokenizer"):
            CaptionTokenizer.load(folder)


MEAN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}


class TestPixels:
    @pytest.mark.parametrize(
        ("name", "described"),
        [
            ("preprocessor_config.json", MEAN),
            (
                "processor_config.json",
                {"image_processor": MEAN, "processor_class": "X"},
            ),
            ("processor_config.json", MEAN),
        ],
    )
    def test_both_files_are_read(self, tmp_path, name, described) -> None:
        # huggingface/transformers#44623: newer releases write processor_config.json alone.
        (tmp_path / name).write_text(json.dumps(described))
        found = read_pixels(tmp_path, assumed="imagenet")
        assert (found["mean"], found["std"]) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
        assert found["channel_order"] == "RGB"

    def test_a_model_that_turns_channels_round_and_never_normalises(self, tmp_path) -> None:
        described = {"do_flip_channel_order": True, "do_rescale": True, "rescale_factor": 1 / 255}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
        found = read_pixels(tmp_path, assumed="imagenet")
        assert found == {
            "channel_order": "BGR",
            "scale": 1 / 255,
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
        }

    def test_what_is_assumed_is_said_once(self, tmp_path, monkeypatch, caplog) -> None:
        monkeypatch.setattr(log, "propagate", True)
        caplog.set_level(logging.WARNING, logger="vse_scale")
        for _ in range(2):
            assert read_pixels(tmp_path, assumed="imagenet") is None
        assert len(caplog.messages) == 1
        assert "normalised as imagenet's" in caplog.messages[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000; give at most 1000"),
        ({"num_attention_heads": 0}, "model.text.architecture: "),
        ({"hidden_size": 2 * 10**5, "intermediate_size": 2 * 10**6}, "GB of weights, and this"),
        ({"num_attention_heads": 3}, "model.text.architecture: "),
        ({"hidden_size": -4}, "model.text.architecture: "),
        ({"hidden_act": "noise"}, "model.text.architecture: "),
    ],
)
def test_settings_out_of_bounds_are_one_line(settings, said) -> None:
    with pytest.raises(ModelError) as error:
        text_model(architecture=TINY | settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


class TestWeights:
    def path(self, tmp_path, content) -> Path:
        torch.save(content, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    @pytest.mark.parametrize(
        ("tensor", "said"),
        [
            (torch.eye(3).to_sparse(), "is not dense"),
            (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "is quantized"),
            (torch.eye(3, dtype=torch.complex64), "is complex"),
        ],
    )
    def test_odd_tensors_are_refused(self, tmp_path, tensor, said) -> None:
        with pytest.raises(ModelError, match=said) as error:
            read_state_dict(self.path(tmp_path, {"a": tensor}))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.eye(2)}, torch.eye(2), "x"])
    def test_anything_but_tensors_by_name_is_refused(self, tmp_path, content) -> None:
        with pytest.raises(ModelError, match="not tensors by name"):
            read_state_dict(self.path(tmp_path, content))

    def test_an_archive_that_inflates_is_refused_unread(self, tmp_path, monkeypatch) -> None:
        stored = self.path(tmp_path, {"a": torch.zeros(10**6)})
        packed = tmp_path / "packed.pth"
        with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
        assert packed.stat().st_size < 10**5
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
        with pytest.raises(ModelError, match=r"compressed archive of 4,\d+,\d+ bytes"):
            read_state_dict(packed)

    def test_cut_and_random_files_are_one_line(self, tmp_path) -> None:
        whole = self.path(tmp_path, {"a": torch.eye(30)}).read_bytes()
        generator = torch.Generator().manual_seed(0)
        refused = 0
        for number in range(40):
            at = int(torch.randint(1, len(whole) - 1, (1,), generator=generator))
            changed = bytes([whole[at] ^ 255]) + whole[at + 1 :]
            (tmp_path / "w.pth").write_bytes(whole[:at] + (b"" if number % 2 else changed))
            with contextlib.suppress(ModelError):
                read_state_dict(tmp_path / "w.pth")
                continue
            refused += 1
        assert refused >= 20

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite_are_refused(self, value) -> None:
        layer = torch.nn.Linear(2, 2)
        before = layer.weight.clone()
        spoilt = {"weight": torch.full((2, 2), value), "bias": torch.zeros(2)}
        with pytest.raises(ModelError, match="weight holds values that are not finite"):
            load_exactly(layer, spoilt, "w.pth")
        assert torch.equal(layer.weight, before)
