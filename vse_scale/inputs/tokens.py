"""Words: captions to token ids, and the published dropping of words in training."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models

from vse_scale.console import log, without_reports
from vse_scale.errors import ModelError
from vse_scale.inputs.spec import MAX_TOKENS, MODEL_TYPE
from vse_scale.inputs.vocabulary import (
    SPECIAL,
    read_pieces,
    read_words,
    train_pieces,
    train_words,
    write_special,
)
from vse_shards.json_text import mapping, parse_json, read_json
from vse_shards.plain_files import read_plain

__all__ = ["SPECIAL", "CaptionTokenizer"]

# Of the words that are touched: the first half is masked, the next tenth replaced, the rest
# removed (VSE-infinity's code, after BERT's masking).
_MASKED, _REPLACED = 0.5, 0.6

# Ids of tokens; the largest vocabularies have about a million, and a table of all is held.
_MOST_IDS = 10**7

# What a tokenizer without a configuration beside it calls its padding and its mask.
_PADS, _MASKS = ("[PAD]", "<pad>"), ("[MASK]", "<mask>")

# Scripts that are written without spaces (Thai, Lao, Tibetan, Burmese, Khmer, kana, Han): what
# stands between spaces is no word there but a phrase.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Draws = Callable[[int], npt.NDArray[np.float32]]


class CaptionTokenizer:
    """An encoder's own tokenizer: text to tokens, between the special tokens of its template.

    In training whole words are dropped, where the tokenizer has words: what its pre-tokenizer
    splits, as BERT's basic tokenizer. Where it has none, and in scripts without spaces, tokens are.

    Attributes:
        vocab_size: number of token ids, special ones included.
        pad_id: id that fills a batch to its longest caption.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        origin: str = "tokenizer",
        *,
        pad_id: int | None = None,
        mask_id: int | None = None,
    ) -> None:
        """Take a tokenizer over.

        Args:
            tokenizer: of any kind.
            origin: what an error message calls it.
            pad_id: None looks for ``[PAD]`` or ``<pad>``; 0 where there is none, since what
                stands beyond a caption is never looked at.
            mask_id: None looks for ``[MASK]`` or ``<mask>``; where there is none, words that
                would be masked are removed.

        Raises:
            ModelError: it is a WordPiece tokenizer that lacks one of BERT's special pieces.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab()
        pieces = isinstance(tokenizer.model, models.WordPiece)
        missing = [piece for piece in SPECIAL if piece not in vocabulary]
        if pieces and missing:
            raise ModelError(
                f"{origin}: {len(vocabulary)} pieces without {', '.join(missing)}; "
                "give a BERT vocabulary"
            )
        if not vocabulary:
            raise ModelError(f"{origin}: knows no tokens")
        self._tokenizer = tokenizer
        self._told_of_cuts = False
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > _MOST_IDS:
            raise ModelError(
                f"{origin}: has a token of id {self.vocab_size - 1:,}, which is beyond "
                f"{_MOST_IDS - 1:,}; restore the tokenizer's files"
            )
        pads = [vocabulary[name] for name in _PADS if name in vocabulary]
        masks = [vocabulary[name] for name in _MASKS if name in vocabulary]
        self.pad_id = pad_id if pad_id is not None else (*pads, 0)[0]
        self._mask = mask_id if mask_id is not None else (*masks, None)[0]
        self._before, self._after = _frame(tokenizer)
        # VSE-infinity's BiGRU code drops <start> and <end> like any word.
        self._frame_counts = isinstance(tokenizer.model, models.WordLevel)
        splitter = tokenizer.pre_tokenizer
        self._has_words = splitter is not None and len(splitter.pre_tokenize_str("a b")) > 1
        self._starts = self._word_starting_tokens(vocabulary)

    def _word_starting_tokens(self, vocabulary: dict[str, int]) -> Mask | None:
        """Return which tokens (vocab_size,) start a word; None if a token does not tell."""
        model = self._tokenizer.model
        pieces = isinstance(model, models.WordPiece)
        if not pieces and not self._frame_counts and self._has_words:
            return None
        starts = np.ones(self.vocab_size, dtype=np.bool_)
        if pieces:
            # Punctuation is split off before WordPiece, so only a continuation can start with ##.
            for piece, number in vocabulary.items():
                starts[number] = not piece.startswith(model.continuing_subword_prefix)
        return starts

    @classmethod
    def load(cls, path: str | Path) -> CaptionTokenizer:
        """Open a Hugging Face folder of any tokenizer, a ``tokenizer.json``, or a vocabulary.

        A vocabulary is BERT's, a piece a line, lower-cased unless one has a capital letter; or
        SCAN's, a JSON object with ``word2idx``.

        Raises:
            ModelError: there is no such file, or it is none of these.
        """
        path = Path(path)
        if path.is_dir():
            if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
                return cls._load_folder(path)
            if not (path / "vocab.txt").is_file():
                raise ModelError(
                    f"{path}: has neither tokenizer.json, tokenizer_config.json nor vocab.txt"
                )
            path = path / "vocab.txt"
        if not path.exists():
            raise ModelError(
                f"{path}: no such tokenizer; nothing is downloaded, so give a folder or a file"
            )
        try:
            text = read_plain(path).decode()
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read as a vocabulary ({error})") from error
        if path.suffix != ".json":
            return cls(read_pieces(text, path), str(path))
        try:
            described = parse_json(text)
            if isinstance(described, dict) and "word2idx" in described:
                return cls(read_words(described, path), str(path))
            return cls(Tokenizer.from_str(text), str(path))
        except ModelError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{path}: is no tokenizer ({error!s:.200})") from error

    @classmethod
    def find(cls, folder: str | Path) -> CaptionTokenizer | None:
        """Open the tokenizer that `save` wrote to ``folder``; None where there is none.

        Raises:
            ModelError: its files are damaged.
        """
        # The files that `save` writes; its tokenizer_config.json alone makes no tokenizer.
        there = any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        return cls.load(folder) if there else None

    @classmethod
    def _load_folder(cls, folder: Path) -> CaptionTokenizer:
        from transformers import AutoTokenizer, PreTrainedConfig

        # A model's own folder: its tokenizer's files say all, and transformers knows no such type.
        bare = PreTrainedConfig() if _model_type(folder) == MODEL_TYPE else None
        try:
            with without_reports():
                opened: Any = AutoTokenizer.from_pretrained(
                    folder, config=bare, local_files_only=True, trust_remote_code=False
                )
            backend = opened.backend_tokenizer
        except Exception as error:  # whatever the kind of tokenizer makes of its files
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            raise ModelError(f"{folder}: cannot be opened as a tokenizer ({reason})") from error
        return cls(backend, str(folder), pad_id=opened.pad_token_id, mask_id=opened.mask_token_id)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
        """Make a WordPiece vocabulary of at most ``vocab_size``; the same captions, the same one.

        Raises:
            ModelError: the captions hold no word.
        """
        return cls(train_pieces(captions, vocab_size))

    @classmethod
    def train_words(cls, captions: Iterable[str], min_count: int) -> CaptionTokenizer:
        """Make a vocabulary of the English words that occur ``min_count`` times or more.

        Raises:
            ModelError: there is no such word.
        """
        return cls(train_words(captions, min_count))

    def digest(self) -> str:
        """Return a sha256 of the tokens and their ids, the same in every release."""
        listed = json.dumps(sorted(self._tokenizer.get_vocab().items()), ensure_ascii=True)
        return hashlib.sha256(listed.encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the files that `load` and transformers' ``AutoTokenizer`` open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._tokenizer.to_str(), encoding="utf-8")
        write_special(self._tokenizer, self.pad_id, self._mask, folder)
        if isinstance(self._tokenizer.model, models.WordPiece):
            vocabulary = self._tokenizer.get_vocab()
            pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
            (folder / "vocab.txt").write_text("".join(f"{p}\n" for p in pieces), encoding="utf-8")

    def encode(
        self,
        texts: Sequence[str],
        draws: Draws | None = None,
        word_drop: float = 0.0,
        max_tokens: int = MAX_TOKENS,
    ) -> tuple[Ids, Ids]:
        """Turn captions into ids.

        Args:
            texts: P captions.
            draws: gives (P, n) uniform draws in [0, 1) when called with n, the same whatever n: for
                the token at position t, column 2t decides on the word that starts there, 2t + 1
                on what replaces the token. None touches no word.
            word_drop: share of words that are touched.
            max_tokens: longer captions are cut, before words are dropped; special tokens count.

        Returns:
            ``token_ids`` (P, L) int64, filled with ``pad_id``, and ``lengths`` (P,) int64, at
            least 1.
        """
        dropping = draws is not None and word_drop > 0.0
        # The fast variant does not keep track of words.
        by_words = dropping and self._starts is None
        tokenizer = self._tokenizer
        encode = tokenizer.encode_batch if by_words else tokenizer.encode_batch_fast
        encodings = encode(list(texts), add_special_tokens=False)
        room = max(max_tokens - len(self._before) - len(self._after), 0)
        rows = [encoding.ids[:room] for encoding in encodings]
        if self._frame_counts:
            rows = [[*self._before, *row, *self._after] for row in rows]
        # A template may be empty, as GPT-2's, and an empty caption with it: padding stands for it.
        least = 0 if self._before or self._after else 1
        pieces, present = _rectangle(rows, self.pad_id, least)
        if draws is not None and dropping:
            if self._starts is not None:
                starts = self._starts[pieces]
            else:
                words = [encoding.word_ids[:room] for encoding in encodings]
                starts = _word_starts(words, pieces.shape[1])
            starts[[_UNSPACED.search(text) is not None for text in texts]] = True
            given = draws(2 * pieces.shape[1])
            pieces, present = self._drop_words(pieces, present, starts, given, word_drop)
        return self._place(pieces, present)

    def report_cut(self, full: Sequence[str], total: int, max_tokens: int) -> None:
        """Log, once in the life of this tokenizer, which share of captions was cut.

        Args:
            full: captions that `encode` returned at full length, cut or not.
            total: number of captions that were encoded.
            max_tokens: as given to `encode`.
        """
        if not full or self._told_of_cuts:
            return
        encodings = self._tokenizer.encode_batch_fast(list(full), add_special_tokens=False)
        room = max_tokens - len(self._before) - len(self._after)
        cut = sum(len(encoding.ids) > room for encoding in encodings)
        if cut:
            self._told_of_cuts = True
            log.info(
                "%d of %d captions (%.1f%%) have more than %d tokens and are cut there; the limit "
                "is the model's (data.max_caption_tokens when it is trained)",
                cut, total, 100 * cut / total, max_tokens,
            )  # fmt: skip

    def _drop_words(
        self,
        pieces: Ids,
        present: Mask,
        starts: Mask,
        draws: npt.NDArray[np.float32],
        word_drop: float,
    ) -> tuple[Ids, Mask]:
        """Mask, replace or remove words; all arrays are (P, L), ``draws`` (P, 2L)."""
        position = np.arange(pieces.shape[1])
        word_start = np.maximum.accumulate(np.where(starts, position[None, :], 0), axis=1)
        fate = np.take_along_axis(draws[:, 0::2], word_start, axis=1) / word_drop
        replacement = (draws[:, 1::2] * self.vocab_size).astype(np.int64)
        changed = (
            replacement if self._mask is None else np.where(fate < _MASKED, self._mask, replacement)
        )
        removed = (fate >= _REPLACED) & (fate < 1.0)
        if self._mask is None:
            removed |= fate < _MASKED
        dropped = np.where((fate < _REPLACED) & ~removed, changed, pieces)
        return dropped, present & ~removed

    def _place(self, pieces: Ids, kept: Mask) -> tuple[Ids, Ids]:
        """Move the kept tokens to the left, between the special ones of the template."""
        before, after = ((), ()) if self._frame_counts else (self._before, self._after)
        if not before and not after:
            kept[:, 0] |= ~kept.any(axis=1)
        frame = len(before) + len(after)
        lengths = kept.sum(axis=1, dtype=np.int64) + frame
        width = int(lengths.max(initial=frame))
        token_ids = np.full((len(kept), width), self.pad_id, dtype=np.int64)
        token_ids[:, : len(before)] = before
        row, column = np.nonzero(kept)
        place = len(before) - 1 + np.cumsum(kept, axis=1)[row, column]
        token_ids[row, place] = pieces[row, column]
        every = np.arange(len(kept))
        for offset, number in enumerate(after):
            token_ids[every, lengths - len(after) + offset] = number
        return token_ids, lengths


def _model_type(folder: Path) -> Any:
    try:
        return mapping(read_json(folder / "config.json")).get("model_type")
    except (OSError, ValueError):
        return None


def _frame(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that the template puts before and after a text."""
    probe = tokenizer.encode("a")
    special = [bool(flag) for flag in probe.special_tokens_mask]
    first = next((i for i, flag in enumerate(special) if not flag), len(special))
    last = next((i for i, flag in enumerate(reversed(special)) if not flag), 0)
    return tuple(probe.ids[:first]), tuple(probe.ids[len(special) - last :])


def _rectangle(rows: Sequence[Sequence[int]], fill: int, least: int = 0) -> tuple[Ids, Mask]:
    """Return ``rows`` as (P, L), L at least ``least``, and which of it they are."""
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    present = np.arange(int(sizes.max(initial=least))) < sizes[:, None]
    values = np.full(present.shape, fill, dtype=np.int64)
    values[present] = [number for row in rows for number in row]
    return values, present


def _word_starts(words: Sequence[Sequence[int | None]], width: int) -> Mask:
    """Return which tokens (P, width) start a word; a token of no word stands alone."""
    numbers, _ = _rectangle([[-1 if w is None else w for w in row] for row in words], -1, width)
    starts = np.ones(numbers.shape, dtype=np.bool_)
    starts[:, 1:] = (numbers[:, 1:] != numbers[:, :-1]) | (numbers[:, 1:] < 0)
    return starts
