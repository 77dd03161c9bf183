"""Words: captions to word-piece ids, and the published dropping of words in training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from vse_scale.errors import ModelError

_PAD, _UNKNOWN, _CLS, _SEP, _MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PREFIX = "##"

# Of the words that are touched: the first half is masked, the next tenth replaced, the rest
# removed (VSE-infinity's code, after BERT's masking).
_MASKED, _REPLACED = 0.5, 0.6

# Below this many occurrences in all captions no piece is made of two; ours.
_MIN_FREQUENCY = 2

Ids = npt.NDArray[np.int64]
Draws = Callable[[int], npt.NDArray[np.float32]]


class CaptionTokenizer:
    """BERT's tokenizer: basic tokenizer to words, WordPiece to pieces, [CLS] ... [SEP].

    Attributes:
        vocab_size: number of pieces, special ones included.
        pad_id: id that fills a batch to its longest caption.
    """

    def __init__(self, tokenizer: Tokenizer, origin: str = "tokenizer") -> None:
        """Take a tokenizer over; ``origin`` is what an error message calls it.

        Raises:
            ModelError: it is no WordPiece tokenizer, or lacks one of BERT's special pieces.
        """
        if not isinstance(tokenizer.model, models.WordPiece):
            kind = type(tokenizer.model).__name__
            raise ModelError(f"{origin}: holds a {kind} tokenizer; only WordPiece is supported")
        vocabulary = tokenizer.get_vocab()
        missing = [piece for piece in SPECIAL if piece not in vocabulary]
        if missing:
            raise ModelError(
                f"{origin}: {len(vocabulary)} pieces without {', '.join(missing)}; "
                "give a BERT vocabulary"
            )
        self._tokenizer = tokenizer
        self.vocab_size = max(vocabulary.values()) + 1
        self.pad_id = vocabulary[_PAD]
        self._cls, self._sep, self._mask = (vocabulary[piece] for piece in (_CLS, _SEP, _MASK))
        # Punctuation is split off before WordPiece, so only a continuation can start with ##.
        self._continues = np.zeros(self.vocab_size, dtype=np.bool_)
        for piece, number in vocabulary.items():
            self._continues[number] = piece.startswith(tokenizer.model.continuing_subword_prefix)

    @classmethod
    def load(cls, path: str | Path) -> CaptionTokenizer:
        """Open a Hugging Face folder with ``tokenizer.json`` or ``vocab.txt``, or a vocabulary.

        A bare vocabulary is lower-cased unless one of its pieces has a capital letter.

        Raises:
            ModelError: there is no such file, or it is no WordPiece vocabulary.
        """
        path = Path(path)
        if path.is_dir():
            file = next(
                (f for f in (path / "tokenizer.json", path / "vocab.txt") if f.is_file()), None
            )
            if file is None:
                raise ModelError(f"{path}: has neither tokenizer.json nor vocab.txt")
        else:
            file = path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file}: cannot be read as a vocabulary ({error})") from error
        if file.suffix == ".json":
            try:
                tokenizer = Tokenizer.from_str(text)
            except Exception as error:  # the library raises nothing narrower
                raise ModelError(f"{file}: is no tokenizer ({error})") from error
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return cls(tokenizer, str(file))
        return cls(_wordpiece(_read_vocabulary(text, file)), str(file))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
        """Make a vocabulary of at most ``vocab_size`` pieces; the same captions give the same one.

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
        learner = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        repeated = (" ".join([word] * words[word]) for word in sorted(words))
        learner.train_from_iterator(repeated, trainer)
        return cls(_wordpiece(learner.get_vocab()))

    def save(self, folder: str | Path) -> None:
        """Write the files that `load` and transformers' ``AutoTokenizer`` open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._tokenizer.to_str(), encoding="utf-8")
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": bool(getattr(self._tokenizer.normalizer, "lowercase", True)),
            "pad_token": _PAD,
            "unk_token": _UNKNOWN,
            "cls_token": _CLS,
            "sep_token": _SEP,
            "mask_token": _MASK,
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )
        vocabulary = self._tokenizer.get_vocab()
        pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
        (folder / "vocab.txt").write_text("".join(f"{p}\n" for p in pieces), encoding="utf-8")

    def encode(
        self,
        texts: Sequence[str],
        draws: Draws | None = None,
        word_drop: float = 0.0,
        max_tokens: int = 128,
    ) -> tuple[Ids, Ids]:
        """Turn captions into ids.

        Args:
            texts: P captions.
            draws: gives (P, n) uniform draws in [0, 1) when called with n, the same whatever n: for
                the piece at position t, column 2t decides on the word that starts there, 2t + 1
                on what replaces the piece. None touches no word.
            word_drop: share of words that are touched.
            max_tokens: longer captions are cut, before words are dropped; [CLS] and [SEP] count.

        Returns:
            ``token_ids`` (P, L) int64, filled with ``pad_id``, and ``lengths`` (P,) int64.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [encoding.ids[: max_tokens - 2] for encoding in encodings]
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        width = int(sizes.max(initial=0))
        present = np.arange(width) < sizes[:, None]
        pieces = np.full(present.shape, self.pad_id, dtype=np.int64)
        pieces[present] = [number for row in rows for number in row]
        if draws is not None and word_drop > 0.0:
            pieces, present = self._drop_words(pieces, present, draws(2 * width), word_drop)
        return self._frame(pieces, present)

    def _drop_words(
        self,
        pieces: Ids,
        present: npt.NDArray[np.bool_],
        draws: npt.NDArray[np.float32],
        word_drop: float,
    ) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Mask, replace or remove words; all arrays are (P, L), ``draws`` (P, 2L)."""
        position = np.arange(pieces.shape[1])
        word_start = np.maximum.accumulate(
            np.where(self._continues[pieces], 0, position[None, :]), axis=1
        )
        fate = np.take_along_axis(draws[:, 0::2], word_start, axis=1) / word_drop
        replacement = (draws[:, 1::2] * self.vocab_size).astype(np.int64)
        changed = np.where(fate < _MASKED, self._mask, replacement)
        dropped = np.where(fate < _REPLACED, changed, pieces)
        removed = (fate >= _REPLACED) & (fate < 1.0)
        return dropped, present & ~removed

    def _frame(self, pieces: Ids, kept: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
        """Move the kept pieces to the left, between [CLS] and [SEP]."""
        lengths = kept.sum(axis=1, dtype=np.int64) + 2
        token_ids = np.full((len(kept), int(lengths.max(initial=2))), self.pad_id, dtype=np.int64)
        token_ids[:, 0] = self._cls
        row, column = np.nonzero(kept)
        token_ids[row, np.cumsum(kept, axis=1)[row, column]] = pieces[row, column]
        token_ids[np.arange(len(kept)), lengths - 1] = self._sep
        return token_ids, lengths


def _read_vocabulary(text: str, file: Path) -> dict[str, int]:
    pieces = text.split("\n")
    if pieces and not pieces[-1]:
        pieces.pop()
    vocabulary = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ModelError(
            f"{file}: {len(pieces)} lines but {len(vocabulary)} different pieces; "
            "a vocabulary names each piece once"
        )
    return vocabulary


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    """Build BERT's tokenizer over a vocabulary."""
    cased = any(piece != piece.lower() for piece in vocabulary if not piece.startswith("["))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    if _CLS in vocabulary and _SEP in vocabulary:
        tokenizer.post_processor = processors.BertProcessing(
            (_SEP, vocabulary[_SEP]), (_CLS, vocabulary[_CLS])
        )
    tokenizer.add_special_tokens([piece for piece in SPECIAL if piece in vocabulary])
    return tokenizer
