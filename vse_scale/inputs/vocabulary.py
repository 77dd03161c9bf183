"""Vocabularies: read, or made from captions, as tokenizers of pieces (BERT) or of words (BiGRU)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from vse_scale.errors import ModelError

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PREFIX = "##"

# Below this many occurrences in all captions no piece is made of two; ours.
_MIN_FREQUENCY = 2

# The special words of the vocabularies that SCAN published and VSE-infinity's BiGRU reads, in
# their order; its code appends the mask.
_WORD_PAD, _START, _END, _WORD_UNKNOWN = WORD_SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
_WORD_MASK = "<mask>"

# The rules by which NLTK's word_tokenize, which made those vocabularies, cuts English, applied to
# what stands between spaces. A full stop that ends a sentence within a caption is cut off too, as
# by NLTK's sentence splitter, but not that of "u.s."; of other abbreviations we have no list.
_OPENING_QUOTE = r"(?<![^\s(\[{<])(?:\"|'')"
_PUNCTUATION = r"``|''|[«“‘„»”’]|`+|\.{2,}|--|[;@#$%&?!*\[\](){}<>]|[:,](?!\d)"
_LAST_STOP = r"(?<=[^.\s])\.(?=[\])}>\"'»”’\s]*$)"
_INNER_STOP = r"(?<=[^.])(?<!\.[a-z])\.(?=['»”’]*$)"
_CONTRACTION = r"(?<=[^'])(?:'s|'m|'d|'ll|'re|'ve|n't|')$"
_JOINED = r"^can(?=not$)|^(?:gon|wan)(?=na$)|^got(?=ta$)|^(?:gim|lem)(?=me$)"


def read_pieces(text: str, file: Path) -> Tokenizer:
    """Build BERT's tokenizer over a vocabulary of one piece a line.

    It lower-cases unless one of the pieces has a capital letter.

    Raises:
        ModelError: a piece is named twice; ``file`` is what the message calls it.
    """
    pieces = text.split("\n")
    if pieces and not pieces[-1]:
        pieces.pop()
    vocabulary = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ModelError(
            f"{file}: {len(pieces)} lines but {len(vocabulary)} different pieces; "
            "a vocabulary names each piece once"
        )
    return _wordpiece(vocabulary)


def read_words(described: object, file: Path) -> Tokenizer:
    """Build a tokenizer of words over SCAN's ``{"word2idx": {...}}``, the mask appended.

    Raises:
        ModelError: it is no such mapping, or a special word is not in it.
    """
    words = described.get("word2idx") if isinstance(described, dict) else None
    if not isinstance(words, dict) or sorted(words.values()) != list(range(len(words))):
        raise ModelError(f"{file}: word2idx does not number its words from 0 on")
    missing = [word for word in WORD_SPECIAL if word not in words]
    if missing:
        raise ModelError(f"{file}: {len(words)} words without {', '.join(missing)}")
    return _words({str(word): int(number) for word, number in words.items()})


def train_pieces(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Make a WordPiece vocabulary of at most ``vocab_size`` pieces.

    Raises:
        ModelError: the captions hold no word.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(caption)
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    if not characters:
        raise ModelError("no vocabulary can be made: the captions hold no word")
    room = (vocab_size - len(SPECIAL)) // 2  # a character needs a piece of either kind
    common = sorted(characters, key=lambda c: (-characters[c], c))[:room]
    # The trainer numbers continuations as its hash map happens to hold the words, and breaks
    # ties by number. Naming them all beforehand leaves nothing to the map.
    fixed = [*SPECIAL, *(_PREFIX + character for character in sorted(common))]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        show_progress=False,
        special_tokens=fixed,
        initial_alphabet=common,
        limit_alphabet=len(common),
        continuing_subword_prefix=_PREFIX,
    )
    learner = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    repeated = (" ".join([word] * words[word]) for word in sorted(words))
    learner.train_from_iterator(repeated, trainer)
    return _wordpiece(learner.get_vocab())


def train_words(captions: Iterable[str], min_count: int) -> Tokenizer:
    """Make a vocabulary of the words that occur at least ``min_count`` times, the common first.

    Raises:
        ModelError: there is no such word.
    """
    splitter = _words(dict(zip(WORD_SPECIAL, range(len(WORD_SPECIAL)), strict=True)))
    normalizer, pre_tokenizer = splitter.normalizer, splitter.pre_tokenizer
    counts: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(caption)
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    frequent = [word for word, count in counts.items() if count >= min_count]
    if not frequent:
        raise ModelError(
            f"no vocabulary can be made: no word occurs {min_count} times in the captions; "
            "set a smaller model.text.min_count"
        )
    ordered = sorted(frequent, key=lambda word: (-counts[word], word))
    return _words({word: number for number, word in enumerate([*WORD_SPECIAL, *ordered])})


def write_special(tokenizer: Tokenizer, pad_id: int, mask_id: int | None, folder: Path) -> None:
    """Write ``tokenizer_config.json``, with which transformers opens ``tokenizer.json`` as is."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.id_to_token(pad_id),
        "mask_token": None if mask_id is None else tokenizer.id_to_token(mask_id),
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    """Build BERT's tokenizer over a vocabulary."""
    cased = any(piece != piece.lower() for piece in vocabulary if not piece.startswith("["))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    if CLS in vocabulary and SEP in vocabulary:
        tokenizer.post_processor = processors.BertProcessing(
            (SEP, vocabulary[SEP]), (CLS, vocabulary[CLS])
        )
    tokenizer.add_special_tokens([piece for piece in SPECIAL if piece in vocabulary])
    return tokenizer


def _words(vocabulary: dict[str, int]) -> Tokenizer:
    """Build a tokenizer of lower-case English words over a vocabulary, the mask appended."""
    vocabulary = dict(vocabulary)
    vocabulary.setdefault(_WORD_MASK, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_WORD_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_OPENING_QUOTE), "``"),
            normalizers.Replace('"', "''"),
        ]
    )
    cuts = (_PUNCTUATION, _INNER_STOP, _CONTRACTION, _JOINED)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LAST_STOP), "isolated"),
            pre_tokenizers.WhitespaceSplit(),
            *(pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts),
        ]
    )
    frame = [(word, vocabulary[word]) for word in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=frame
    )
    return tokenizer
