"""A frozen text encoder whose states are computed once and held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import Job, distance, train_jobs

from vse_scale.config import Config
from vse_scale.data.mixing import caption_texts, open_datasets
from vse_scale.errors import ConfigError
from vse_scale.inputs.tokens import CaptionTokenizer
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
