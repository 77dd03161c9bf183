"""States of captions that a run holds, against what one holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from vse_scale.config import Config
from vse_scale.data.mixing import caption_texts, open_datasets
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.planning import held
from vse_scale.planning.memory import memory_line
from vse_scale.planning.page import TOKENS, Plan
from vse_scale.training import captions
from vse_scale.world.processes import ALONE

HELD = ("model.text.frozen=true", "data.word_drop=0", "data.hold_captions=true")


def planned(config: Config) -> float:
    (part,) = {one.memory["captions"] for one in Plan.of(config, [2], None).estimates[2].values()}
    return part


@pytest.mark.parametrize("pool", ["mean", "gpo"])
def test_all_captions_are_counted_as_they_are_held(
    pool: str, small_run: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [open_datasets([scenes], split) for split in ("train", "val")]
    texts = [text for one in both for text in caption_texts(one)]
    CaptionTokenizer.train(texts, 120).save(tmp_path / "pieces")
    own = (f"model.text.tokenizer={tmp_path / 'pieces'}", "data.max_caption_tokens=9")
    config = Config.load(small_run, [*HELD, *own, f"model.pool={pool}"])
    tokenizer = CaptionTokenizer.load(tmp_path / "pieces")
    model = VSEModel(config.model, tokenizer.vocab_size, 0, config.data.max_caption_tokens)
    captions.hold(model, tokenizer, tuple(both), config, ALONE)
    states = model.text.held.states
    assert planned(config) == states.numel() * states.element_size()
    assert "captions" in memory_line(config, 2, cuda=False, tokens=TOKENS)
    # Of more images some stand for all, each caption for itself.
    monkeypatch.setattr(held, "_IMAGES", 10)
    _, lengths = tokenizer.encode(texts, max_tokens=9)
    vectors = len(lengths) if pool == "mean" else int(lengths.sum())
    wanted = states.element_size() * states.shape[1] * vectors
    assert planned(config) == pytest.approx(wanted, rel=0.05)


def test_captions_that_are_not_read_have_as_many_tokens_as_is_supposed(small_run: Path) -> None:
    """A vocabulary that the run makes, and a dataset elsewhere; five captions to 100 images."""
    config = Config.load(small_run, HELD)
    model = VSEModel(config.model, 120, 0)
    whole = 2 * model.text.projection.in_features * 500 * TOKENS
    assert planned(config) == whole
    remote = config.data.model_copy(update={"path": Path(config.data.folders[0]).as_uri()})
    assert planned(config.model_copy(update={"data": remote})) == whole


def test_what_is_not_held_is_no_part_and_what_is_not_there_is_said(small_run: Path) -> None:
    assert "captions" not in Plan.of(Config.load(small_run), [2], None).estimates[2][2].memory
    gone = Config.load(small_run, [*HELD, "data.path=no/such"])
    assert "the states of captions are not counted: no/such" in Plan.of(gone, [2], None).text()
