"""A frozen text encoder whose states are computed once and held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import Job, distance, train_jobs
from torch import Tensor

from vse_scale.config import Config
from vse_scale.data.mixing import caption_texts, open_datasets
from vse_scale.errors import ConfigError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.embedding import evaluating
from vse_scale.model.towers.held import HeldStates
from vse_scale.model.vse import VSEModel
from vse_scale.training import captions
from vse_scale.world.processes import ALONE

FROZEN = ("model.text.frozen=true", "data.word_drop=0")
HELD = (*FROZEN, "data.hold_captions=true")


def config_of(scenes: Path, *overrides: str) -> Config:
    small = Path(__file__).parents[1] / "small.yaml"
    return Config.load(small, [f"data.path={scenes}", "run.dir=r", *overrides])


def test_the_tower_finds_what_its_encoder_would_compute(scenes: Path) -> None:
    config, dataset = config_of(scenes, *HELD), open_datasets([scenes], "train")
    texts = list(caption_texts(dataset))
    tokenizer = CaptionTokenizer.train(texts, config.model.text.vocab_size)
    torch.manual_seed(0)
    model = VSEModel(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    ids, lengths = map(torch.from_numpy, tokenizer.encode(texts[:20]))
    expected = model.encode_captions(ids, lengths)
    captions.hold(model, tokenizer, (dataset, None), config, ALONE)
    model.text.encoder = None  # it is not asked again
    # States are rounded to float16, 5e-4 of a value.
    torch.testing.assert_close(model.encode_captions(ids, lengths), expected, rtol=0, atol=1e-3)


def held_by(scenes: Path, *overrides: str) -> VSEModel:
    config, dataset = config_of(scenes, *HELD, *overrides), open_datasets([scenes], "train")
    tokenizer = CaptionTokenizer.train(caption_texts(dataset), config.model.text.vocab_size)
    torch.manual_seed(0)
    most = config.data.max_caption_tokens
    model = VSEModel(config.model, tokenizer.vocab_size, tokenizer.pad_id, most)
    captions.hold(model, tokenizer, (dataset, None), config, ALONE)
    return model


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_states_that_are_pooled_once_train_as_whole_ones(scenes: Path, pool: str) -> None:
    changes = (f"model.pool={pool}", "model.text.drop_channels=0.5")
    model = held_by(scenes, *changes).train()
    once = model.text.held
    whole = HeldStates(once.token_ids, once.lengths, once.states.shape[1], ALONE.device)
    with evaluating(model):  # in the same batches, so that float16 rounds the same values
        captions._compute(whole, model.text, config_of(scenes, *HELD, *changes), ALONE)
    ids, lengths = once.token_ids[-8:], once.lengths[-8:]

    def gradient(held: HeldStates) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)  # of the channels left out
        model.zero_grad()
        model.text.held = held
        found = model.text(ids, lengths)
        found.square().sum().backward()
        return found.detach(), model.text.projection.weight.grad

    for found, expected in zip(gradient(once), gradient(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "gpo"])
def test_kept_states_are_read_by_the_next_run(
    scenes: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    pool: str,
) -> None:
    kept = (
        "model.image.frozen=true", "data.crop_scale=[1,1]", "data.flip=0",
        f"data.feature_cache={tmp_path / 'c'}", f"model.pool={pool}",
    )  # fmt: skip
    computed = held_by(scenes, *kept).text.held.states
    (file,) = (tmp_path / "c").iterdir()
    whole = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(captions, "_compute", None)  # it is not asked again
        assert torch.equal(held_by(scenes, *kept).text.held.states, computed)
    file.write_bytes(whole[:-100])
    assert torch.equal(held_by(scenes, *kept).text.held.states, computed)
    assert "is no whole file of states" in caplog.text
    assert file.read_bytes() == whole
    # Other captions, states or weights are of another name.
    held_by(scenes, *kept, "data.max_caption_tokens=5")
    held_by(scenes, *kept, "model.pool=first")
    assert len(list((tmp_path / "c").iterdir())) == 3


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("model.text.frozen=true",), ("data.word_drop=0",)),
        (("data.word_drop=0",), ("model.text.frozen=true",)),
        ((), FROZEN),
        (FROZEN[:1], ("data.hold_captions=false",)),
    ],
)
def test_states_that_would_change_are_refused(
    scenes: Path, overrides: tuple[str, ...], remedy: tuple[str, ...]
) -> None:
    asked = ("data.hold_captions=true", *overrides)
    with pytest.raises(ConfigError, match="and the states of captions") as caught:
        config_of(scenes, *asked)
    assert all(change in str(caught.value) for change in remedy)
    config_of(scenes, *asked, *remedy)


def test_states_beyond_float16_are_refused(scenes: Path) -> None:
    config, dataset = config_of(scenes, *HELD), open_datasets([scenes], "train")
    tokenizer = CaptionTokenizer.train(caption_texts(dataset), 120)
    model = VSEModel(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    with torch.no_grad():
        list(model.text.encoder.parameters())[-1].fill_(1e5)  # the last norm's bias
    with pytest.raises(ConfigError, match="beyond float16"):
        captions.hold(model, tokenizer, (dataset, None), config, ALONE)


@pytest.mark.slow
def test_held_states_train_as_computed_ones_do(few_steps: Path, tmp_path: Path) -> None:
    rate = "optim.lr=1e-5"
    jobs = {"computed": Job((*FROZEN, rate), count=3), "held": Job((*HELD, rate), count=3)}
    alone = train_jobs(few_steps, tmp_path, 1, jobs)
    two = train_jobs(few_steps, tmp_path, 2, {"held": Job((*HELD, rate), count=3)})["held"]
    for step, computed in enumerate(alone["computed"].steps):
        for run in (alone["held"], two):
            found = run.steps[step]
            assert torch.equal(found["pairs"], computed["pairs"])
            assert found["record"]["loss"] == pytest.approx(computed["record"]["loss"], rel=1e-4)
            assert distance(found["gradient"], computed["gradient"]) < 5e-3
