import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import SPECIAL, CaptionTokenizer

SENTENCE = "A man in a hat rides an elephant in a river."
# Published with the vocabulary of bert-base-uncased.
IDS = [101, 1037, 2158, 1999, 1037, 6045, 12271, 2019, 10777, 1999, 1037, 2314, 1012, 102]


@pytest.fixture(scope="session")
def bert(shared) -> Path:
    return shared / "data" / "bert-base-uncased"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> CaptionTokenizer:
    """A vocabulary in which some words take several pieces."""
    words = ["a", "red", "ball", "ele", "##phant", "##s", "left", "of", ",", "."]
    path = tmp_path_factory.mktemp("small") / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in [*SPECIAL, *words]))
    return CaptionTokenizer.load(path)


@pytest.mark.parametrize("name", ["", "vocab.txt", "tokenizer.json"])
def test_the_published_sentence_has_the_published_ids(bert, name):
    tokenizer = CaptionTokenizer.load(bert / name)
    assert tokenizer.vocab_size == 30522
    token_ids, lengths = tokenizer.encode([SENTENCE, "Hat!"])
    assert token_ids[0].tolist() == IDS
    assert lengths.tolist() == [14, 4]
    assert token_ids[1, 4:].tolist() == [tokenizer.pad_id] * 10
    assert token_ids.dtype == lengths.dtype == np.int64


def test_a_bare_vocabulary_equals_the_full_tokenizer(bert, shared):
    lines = (shared / "data" / "flickr8k" / "captions.jsonl").read_text().splitlines()[:400]
    texts = [text for line in lines for text in json.loads(line)["captions"]]
    texts += [
        "",
        "Ünïcode naïve café",
        "don't stop-me 3,000 x",
        "漢字 tokens",
        "wordthatisunknownxyzq",
    ]
    bare = CaptionTokenizer.load(bert / "vocab.txt").encode(texts)
    full = CaptionTokenizer.load(bert).encode(texts)
    for left, right in zip(bare, full, strict=True):
        np.testing.assert_array_equal(left, right)


def given(draws):
    return lambda count: draws[:, :count]


def naive_drop(tokenizer, words, draws, word_drop, ids):
    """The published loop, word by word: draws (2 * positions,), words as lists of pieces."""
    out, position = [ids["[CLS]"]], 0
    for word in words:
        fate = draws[2 * position] / word_drop
        for offset, piece in enumerate(word):
            replacement = int(draws[2 * (position + offset) + 1] * tokenizer.vocab_size)
            if fate >= 1:
                out.append(ids[piece])
            elif fate < 0.5:
                out.append(ids["[MASK]"])
            elif fate < 0.6:
                out.append(replacement)
        position += len(word)
    return [*out, ids["[SEP]"]]


def test_dropping_equals_the_published_loop(small):
    pieces = [*SPECIAL, "a", "red", "ball", "ele", "##phant", "##s", "left", "of", ",", "."]
    ids = {piece: number for number, piece in enumerate(pieces)}
    captions = {
        "a red ball left of elephants.": [
            ["a"], ["red"], ["ball"], ["left"], ["of"], ["ele", "##phant", "##s"], ["."],
        ],
        "elephants, elephant": [["ele", "##phant", "##s"], [","], ["ele", "##phant"]],
        "": [],
        "ball": [["ball"]],
    }  # fmt: skip
    texts = list(captions) * 200
    draws = np.random.default_rng(0).random((len(texts), 32), dtype=np.float32)
    for word_drop in (0.2, 0.9):
        token_ids, lengths = small.encode(texts, given(draws), word_drop, max_tokens=16)
        for row, text in enumerate(texts):
            expected = naive_drop(small, captions[text], draws[row], np.float32(word_drop), ids)
            assert token_ids[row, : lengths[row]].tolist() == expected
            assert (token_ids[row, lengths[row] :] == small.pad_id).all()


def test_a_caption_that_loses_every_word_keeps_its_frame(small):
    draws = np.full((2, 32), 0.7, np.float32)
    token_ids, lengths = small.encode(["red ball", "a"], given(draws), word_drop=1.0, max_tokens=16)
    assert token_ids.tolist() == [[2, 3], [2, 3]]
    assert lengths.tolist() == [2, 2]


def test_shares_of_touched_words_are_the_published_ones(small):
    texts = ["red " * 10] * 4000
    draws = np.random.default_rng(1).random((4000, 64), dtype=np.float32)
    token_ids, lengths = small.encode(texts, given(draws), word_drop=0.2, max_tokens=32)
    words = 40_000
    assert (token_ids == 4).sum() / words == pytest.approx(0.2 * 0.5 + 0.2 * 0.1 / 15, abs=0.005)
    assert 1 - (lengths - 2).sum() / words == pytest.approx(0.2 * 0.4, abs=0.005)


def test_long_captions_are_cut(small):
    token_ids, lengths = small.encode(["a red ball left of a red ball"], max_tokens=5)
    assert token_ids.tolist() == [[2, 5, 6, 7, 3]]
    assert lengths.tolist() == [5]


def test_no_captions_are_an_empty_batch(small):
    token_ids, lengths = small.encode([])
    assert token_ids.shape == (0, 2)
    assert lengths.shape == (0,)


def test_a_caption_does_not_depend_on_its_batch(small):
    draws = np.random.default_rng(2).random((2, 64), dtype=np.float32)
    texts = ["a red ball", "elephants left of a red red red ball."]
    together, lengths = small.encode(texts, given(draws), 0.5, 32)
    for row in range(2):
        alone, length = small.encode(texts[row : row + 1], given(draws[row : row + 1]), 0.5, 32)
        assert length[0] == lengths[row]
        np.testing.assert_array_equal(alone[0], together[row, : length[0]])


CAPTIONS = [
    f"A {colour} {shape}s {place} the {other}, near one unusual{number} thing."
    for number, colour in enumerate(["red", "green", "blue", "purple", "yellow"] * 8)
    for shape in ["ball", "cube", "cylinder"]
    for place in ["above", "below", "beside"]
    for other in ["torus", "pyramid"]
]

TRAIN = """
import json, sys
from vse_scale.inputs.tokens import CaptionTokenizer
CaptionTokenizer.train(json.load(sys.stdin), int(sys.argv[2])).save(sys.argv[1])
"""


@pytest.mark.parametrize("vocab_size", [40, 120, 8000])
def test_training_a_vocabulary_is_deterministic_across_processes(tmp_path, vocab_size):
    saved = []
    for run in range(3):
        folder = tmp_path / str(run)
        subprocess.run(
            [sys.executable, "-c", TRAIN, folder, str(vocab_size)],
            input=json.dumps(CAPTIONS),
            env={**os.environ, "PYTHONHASHSEED": str(run)},
            text=True,
            check=True,
        )
        saved.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert sorted(saved[0]) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert saved[0] == saved[1] == saved[2]
    assert len(saved[0]["vocab.txt"].splitlines()) <= vocab_size


def test_the_order_of_captions_does_not_matter_to_a_vocabulary(tmp_path):
    CaptionTokenizer.train(CAPTIONS, 150).save(tmp_path / "a")
    CaptionTokenizer.train(reversed(CAPTIONS), 150).save(tmp_path / "b")
    assert (tmp_path / "a" / "vocab.txt").read_text() == (tmp_path / "b" / "vocab.txt").read_text()


def test_a_made_vocabulary_knows_its_captions_and_opens_everywhere(tmp_path):
    tokenizer = CaptionTokenizer.train(CAPTIONS, 8000)
    token_ids, lengths = tokenizer.encode(CAPTIONS)
    assert tokenizer.pad_id == 0
    unknown = 1
    assert not (token_ids == unknown).any()
    # "A", colour, shape, place, "the", other, ",", "near", "one", unusual<n>, "thing", "."
    assert np.median(lengths) == 12 + 2
    tokenizer.save(tmp_path)
    np.testing.assert_array_equal(CaptionTokenizer.load(tmp_path).encode(CAPTIONS)[0], token_ids)

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)(CAPTIONS[:50])["input_ids"]
    ours = [row[:n].tolist() for row, n in zip(token_ids[:50], lengths[:50], strict=True)]
    assert theirs == ours


def test_pieces_join_back_to_what_was_trained_on(tmp_path):
    CaptionTokenizer.train(["lower newer wider"] * 9 + ["lowest newest widest"] * 9, 60).save(
        tmp_path
    )
    pieces = (tmp_path / "vocab.txt").read_text().split()
    assert pieces[:5] == list(SPECIAL)
    assert {"lower", "widest"} <= set(pieces)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"0 pieces without \[PAD\]"),
        ("a\nb\n", r"2 pieces without \[PAD\], \[UNK\]"),
        ("\n".join([*SPECIAL, "a", "a"]), "7 lines but 6 different pieces"),
    ],
)
def test_a_wrong_vocabulary_is_refused(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(ModelError, match=message):
        CaptionTokenizer.load(path)
    with pytest.raises(ModelError, match="no such tokenizer; nothing is downloaded"):
        CaptionTokenizer.load("bert-base-uncased")


def test_a_missing_or_foreign_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer_config\.json nor vocab\.txt"):
        CaptionTokenizer.load(tmp_path)
    with pytest.raises(ModelError, match=r"gone\.txt"):
        CaptionTokenizer.load(tmp_path / "gone.txt")
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'
    )
    with pytest.raises(ModelError, match="knows no tokens"):
        CaptionTokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is no tokenizer"):
        CaptionTokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match="cannot be opened as a tokenizer") as caught:
        CaptionTokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="hold no word"):
        CaptionTokenizer.train(["", "  "], 100)
