"""Tokenizers of other encoders than BERT, made here: their words, their templates, their files."""

import functools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from vse_scale.errors import ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.inputs.vocabulary import WORD_SPECIAL

TEXTS = [
    "Ein Hund läuft über die Straße.",
    "Два кота спят на диване, рядом.",
    "ผู้ชายขี่ม้าในทุ่งหญ้า",
    "一个人在雪地里骑自行车",
    "a dog runs, quickly",
    "A man in a hat rides an elephant in a river.",
] * 4


def roberta_like():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer, {"pad_token": "<pad>", "mask_token": "<mask>"}


def xlmr_like():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        TEXTS,
        UnigramTrainer(
            vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer, {"pad_token": "<pad>", "mask_token": "<mask>"}


def t5_like():
    """An end mark only, no mask, and no words: spaces are letters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS,
        UnigramTrainer(
            vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer, {"pad_token": "<pad>"}


def gpt_like():
    """No template, no padding, no mask."""
    tokenizer, _ = roberta_like()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    kept = json.loads(tokenizer.to_str())
    kept["added_tokens"] = []
    for name in ("<pad>", "<mask>"):
        kept["model"]["vocab"][f"old{name}"] = kept["model"]["vocab"].pop(name)
    return Tokenizer.from_str(json.dumps(kept)), {}


MADE = {"roberta": roberta_like, "xlm-r": xlmr_like, "t5": t5_like, "gpt": gpt_like}


@pytest.fixture(params=MADE)
def folder(request, tmp_path):
    tokenizer, special = MADE[request.param]()
    path = tmp_path / request.param
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (path / "tokenizer_config.json").write_text(json.dumps(described))
    return path


def drawn(seed, count=400):
    draws = np.random.default_rng(seed).random((len(TEXTS), count), dtype=np.float32)
    return lambda n: draws[:, :n]


def rows_of(encoded):
    token_ids, lengths = encoded
    return [row[:length].tolist() for row, length in zip(token_ids, lengths, strict=True)]


def test_a_caption_has_the_ids_that_transformers_gives_it(folder):
    from transformers import AutoTokenizer

    ours = rows_of(CaptionTokenizer.load(folder).encode(TEXTS, max_tokens=500))
    assert ours == AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]


def test_long_captions_are_cut_within_the_template(folder):
    tokenizer = opened(folder)
    whole = rows_of(tokenizer.encode(TEXTS, max_tokens=500))
    after = {"roberta": 1, "xlm-r": 1, "t5": 1, "gpt": 0}[folder.name]
    for row, cut in zip(whole, rows_of(tokenizer.encode(TEXTS, max_tokens=6)), strict=True):
        assert cut == row[: 6 - after] + row[len(row) - after :]


def naive(folder, text, draws, word_drop):
    """The published loop over what the tokenizer itself says are words."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    encoding = tokenizer.encode(text)
    unspaced = any(ord(c) > 0xE00 for c in text)
    out, start, before = [], 0, None
    position = 0
    for number, special, word in zip(
        encoding.ids, encoding.special_tokens_mask, encoding.word_ids, strict=True
    ):
        if special:
            out.append(number)
            continue
        if folder.name == "t5" or unspaced or word != before:
            start = position
        before = word
        fate = draws[2 * start] / word_drop
        if fate >= 1:
            out.append(number)
        elif fate < 0.5:
            out += [vocabulary["<mask>"]] if "<mask>" in vocabulary else []
        elif fate < 0.6:
            out.append(int(draws[2 * position + 1] * len(vocabulary)))
        position += 1
    return out


@pytest.mark.parametrize("word_drop", [0.2, 0.9])
def test_words_are_dropped_where_there_are_words_and_tokens_where_not(folder, word_drop):
    tokenizer = opened(folder)
    assert tokenizer.vocab_size == len(
        Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    )
    draws = drawn(1)
    found = rows_of(tokenizer.encode(TEXTS, draws, word_drop, max_tokens=500))
    for text, row, row_draws in zip(TEXTS, found, draws(400), strict=True):
        expected = naive(folder, text, row_draws, np.float32(word_drop))
        assert row == (expected or [tokenizer.encode([text])[0][0, 0]])


def test_a_caption_does_not_depend_on_its_batch(folder):
    tokenizer = opened(folder)
    draws = drawn(2)
    together = rows_of(tokenizer.encode(TEXTS, draws, 0.5))
    for row, text in enumerate(TEXTS[:6]):
        alone = tokenizer.encode([text], lambda n, row=row: draws(n)[row : row + 1], 0.5)
        assert rows_of(alone) == [together[row]]


def test_a_tokenizer_is_saved_and_opened_as_it_is(folder, tmp_path):
    tokenizer = opened(folder)
    tokenizer.save(tmp_path / "kept")
    again = CaptionTokenizer.load(tmp_path / "kept")
    assert (again.vocab_size, again.pad_id) == (tokenizer.vocab_size, tokenizer.pad_id)
    for left, right in zip(
        again.encode(TEXTS, drawn(3), 0.4), tokenizer.encode(TEXTS, drawn(3), 0.4), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def test_nothing_is_never_nothing(folder):
    token_ids, lengths = CaptionTokenizer.load(folder).encode(["", "a"])
    assert (lengths >= 1).all()
    assert token_ids.shape[1] >= lengths.max()


# Cut by NLTK 3.10's word_tokenize of the lower-cased text.
NLTK = {
    "The dog's bone isn't here.": ["the", "dog", "'s", "bone", "is", "n't", "here", "."],
    "They're at 3:30, we'll see...": [
        "they", "'re", "at", "3:30", ",", "we", "'ll", "see", "...",
    ],
    'A sign says "No parking" (here).': [
        "a", "sign", "says", "``", "no", "parking", "''", "(", "here", ")", ".",
    ],
    "A cannot--do; the dogs' 5,000 bones?": [
        "a", "can", "not", "--", "do", ";", "the", "dogs", "'", "5,000", "bones", "?",
    ],
    "A t-shirt & jeans, $5 U.S. bill": [
        "a", "t-shirt", "&", "jeans", ",", "$", "5", "u.s.", "bill",
    ],
}  # fmt: skip


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(max_size=30), max_size=4), st.floats(0.1, 1.0))
def test_any_text_has_ids_that_do_not_depend_on_its_neighbours(folder, texts, word_drop):
    tokenizer = opened(folder)
    draws = np.random.default_rng(len(texts)).random((len(texts), 400), dtype=np.float32)
    token_ids, lengths = tokenizer.encode(texts, lambda n: draws[:, :n], word_drop)
    assert ((token_ids >= 0) & (token_ids < tokenizer.vocab_size)).all()
    assert ((lengths >= 1) & (lengths <= token_ids.shape[1])).all()
    for row, text in enumerate(texts):
        alone = tokenizer.encode([text], lambda n, row=row: draws[row : row + 1, :n], word_drop)
        assert rows_of(alone) == [token_ids[row, : lengths[row]].tolist()]


def opened(folder):
    return _opened(folder, (folder / "tokenizer.json").read_bytes())


@functools.lru_cache
def _opened(folder, content):
    # A folder that was removed gives its name to the next, whose vocabulary may be another:
    # two trainings of a Unigram by tokenizers 0.22.1 differ.
    return CaptionTokenizer.load(folder)


class TestWords:
    CAPTIONS = ["The dog's bone isn't here."] * 4 + ["A cat cannot fly, it runs."] * 3

    @pytest.mark.parametrize("text", NLTK)
    def test_words_are_cut_as_the_published_vocabularies_were(self, text, tmp_path):
        words = sorted(set(NLTK[text]))
        numbers = {word: n for n, word in enumerate([*WORD_SPECIAL, *words])}
        path = tmp_path / "vocab.json"
        path.write_text(json.dumps({"word2idx": numbers, "idx2word": {}, "idx": len(numbers)}))
        tokenizer = CaptionTokenizer.load(path)
        assert tokenizer.vocab_size == len(numbers) + 1  # the mask
        expected = [1, *(numbers[word] for word in NLTK[text]), 2]
        assert rows_of(tokenizer.encode([text])) == [expected]

    def test_rare_words_are_unknown(self, tmp_path):
        tokenizer = CaptionTokenizer.train_words(self.CAPTIONS, min_count=4)
        # "." 7 times, the words of the first caption 4 times; "cat" only 3.
        assert tokenizer.vocab_size == 4 + 8 + 1
        assert tokenizer.pad_id == 0
        assert rows_of(tokenizer.encode(["cat ."])) == [[1, 3, 4, 2]]
        tokenizer.save(tmp_path)
        opened = CaptionTokenizer.load(tmp_path)
        assert opened.vocab_size == tokenizer.vocab_size
        assert rows_of(opened.encode(self.CAPTIONS)) == rows_of(tokenizer.encode(self.CAPTIONS))

    def test_the_order_of_captions_does_not_matter(self):
        made = [
            CaptionTokenizer.train_words(captions, 1)
            for captions in (self.CAPTIONS, self.CAPTIONS[::-1])
        ]
        assert rows_of(made[0].encode(self.CAPTIONS)) == rows_of(made[1].encode(self.CAPTIONS))

    def test_start_and_end_are_dropped_like_words(self):
        tokenizer = CaptionTokenizer.train_words(self.CAPTIONS, 1)
        mask = tokenizer.vocab_size - 1
        fates = np.float32([0.3, 0.9, 0.3, 0.9, 0.7])  # of <start> dog bone here <end>
        draws = np.stack([fates, np.full(5, 0.5, np.float32)], axis=1).reshape(1, -1)
        whole = rows_of(tokenizer.encode(["dog bone here"]))[0]
        found = rows_of(tokenizer.encode(["dog bone here"], lambda n: draws[:, :n], 0.8))
        assert found == [[mask, whole[1], mask, whole[3]]]
        nothing = np.full((1, 10), 0.7, np.float32)
        assert rows_of(tokenizer.encode(["dog bone here"], lambda n: nothing[:, :n], 1.0)) == [[1]]

    @pytest.mark.parametrize(
        ("described", "message"),
        [
            ({"word2idx": {"a": 0}}, "1 words without <pad>, <start>, <end>, <unk>"),
            ({"word2idx": {"a": 0, "b": 7}}, "does not number its words from 0 on"),
            ({"word2idx": 3}, "does not number its words"),
        ],
    )
    def test_a_wrong_vocabulary_is_refused(self, tmp_path, described, message):
        path = tmp_path / "vocab.json"
        path.write_text(json.dumps(described))
        with pytest.raises(ModelError, match=message):
            CaptionTokenizer.load(path)

    def test_captions_without_frequent_words_are_refused(self):
        with pytest.raises(ModelError, match="no word occurs 9 times"):
            CaptionTokenizer.train_words(self.CAPTIONS[:4], 9)
