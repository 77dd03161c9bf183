"""The text tower over words: embedding, bidirectional GRU, pooling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vse_scale.bounds import Count
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.packing import is_eager_cpu
from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import TextSettings
from vse_scale.model.towers.packed_gru import PackedGRU, Prefixes

_WORDS = 10_000  # of COCO's and Flickr30K's vocabularies
_EMBEDDING_RANGE = 0.1  # of the uniform initial word embeddings, as published
# Channels of a state from which a CPU packs rows; narrower models keep the order in which they add
# up, and so the bits of their losses.
_LEAST_PACKED = 64


@dataclass(frozen=True, kw_only=True)
class BiGRUSettings(TextSettings):
    """Settings of a bidirectional GRU over words.

    Attributes:
        word_channels: of a word's embedding.
        min_count: a vocabulary that is made holds the words that occur so often, as SCAN's, which
            the published code reads.
    """

    word_channels: Count = 300
    min_count: Count = 4

    def describe(self) -> str:
        """Return the tower's name for people."""
        return "BiGRU"

    def make_tokenizer(self, captions: Iterable[str]) -> CaptionTokenizer:
        """Make a vocabulary of the frequent words of ``captions``.

        Raises:
            ModelError: there is no such word.
        """
        return CaptionTokenizer.train_words(captions, self.min_count)

    def expected_vocab_size(self) -> int:
        """Return the size of COCO's and Flickr30K's vocabularies."""
        return _WORDS


class BiGRUTower(nn.Module):
    """Word embedding -> bidirectional GRU, its directions averaged -> pooling.

    Below ``encoder`` parameters have the names of published checkpoints: ``embed.*`` and ``rnn.*``;
    the published ``gpool.*`` is ``pool.*`` here. There is no projection: a direction's state has
    the embedding's channels.

    Args:
        settings: of the tower.
        embed_dim: D of the embeddings.
        pool: name of the pooling that makes one vector of a caption's.
        vocab_size: number of token ids.
        pad_id: ignored: padding is known by the lengths.
        dropout: ignored: there is none, as published.
    """

    Settings = BiGRUSettings

    def __init__(
        self,
        settings: BiGRUSettings,
        embed_dim: int,
        pool: str = "gpo",
        *,
        vocab_size: int,
        pad_id: int = 0,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        self.encoder = _Words(vocab_size, settings.word_channels, embed_dim)
        self.pool = make_pool(pool)

    @property
    def positions(self) -> None:
        """Most tokens of a caption: there is no limit."""
        return None

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``token_ids`` (P, L), of which ``lengths`` (P,) are no padding, into (P, D)."""
        pooled: Tensor = self.pool(self.encoder(token_ids, lengths), lengths)
        return pooled

    def standalone(self) -> BiGRUSettings:
        """Return settings that build the tower again, without its tokenizer."""
        return replace(self._settings, tokenizer=None)

    def recompute_activations(self) -> None:
        """Do nothing: the states of a GRU cannot be computed again one by one."""


class _Words(nn.Module):
    """Word embedding and GRU: (P, L) ids to (P, L, D) vectors."""

    def __init__(self, vocab_size: int, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, channels)
        nn.init.uniform_(self.embed.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        self.rnn = RaggedGRU(channels, embed_dim)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        if self.training and self.rnn.hidden_size >= _LEAST_PACKED and is_eager_cpu(lengths):
            words, places = torch.unique(token_ids, return_inverse=True)
            return self.rnn.average_of_words(self.embed(words), places, lengths)
        forward, backward = self.rnn(self.embed(token_ids), lengths)
        averaged: Tensor = (forward + backward) / 2
        return averaged


class RaggedGRU(nn.GRU):
    """One bidirectional layer over rows of different lengths, with the parameters of ``nn.GRU``.

    The directions run one after the other, the backward one over rows that are turned around
    within their lengths: packing, the usual way, would have to wait for the lengths to come back
    from the device.

    Args:
        input_size: channels of an input, C.
        hidden_size: channels of a direction's state, H.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Run both directions over ``inputs`` (P, L, C), of which ``lengths`` (P,) count.

        Returns:
            The states of the forward and of the backward direction, (P, L, H) each, both in the
            order of the inputs; what stands beyond a row's length is arbitrary.
        """
        order = _turned(lengths, inputs.shape[1])[..., None]
        backward = self._run(inputs.gather(1, order.expand_as(inputs)), "_reverse")
        return self._run(inputs, ""), backward.gather(1, order.expand_as(backward))

    def average_of_words(self, words: Tensor, places: Tensor, lengths: Tensor) -> Tensor:
        """Run both directions over words that occur several times; for training on a CPU.

        Args:
            words: (U, C), the inputs that differ.
            places: (P, L) int64, which of them is where; those beyond a row's length are ignored.
            lengths: (P,) int64.

        Returns:
            The mean of both directions' states (P, L, H), 0 beyond a row's length.
        """
        turned = _turned(lengths, places.shape[1])
        own = torch.arange(places.shape[1]) < lengths[:, None]
        prefixes = Prefixes.of(places, lengths)
        suffixes = Prefixes.of(places.gather(1, turned), lengths)
        forward, backward = (
            PackedGRU.apply(words, found, *self._weights(direction)).index_select(0, ends[own])  # type: ignore[no-untyped-call]
            for direction, found, ends in (
                ("", prefixes, prefixes.places),
                ("_reverse", suffixes, suffixes.places.gather(1, turned)),
            )
        )
        averaged = (forward + backward) / 2
        padded = words.new_zeros(places.numel(), self.hidden_size)
        padded = padded.index_copy(0, own.flatten().nonzero()[:, 0], averaged)
        return padded.view(*places.shape, self.hidden_size)

    def _run(self, inputs: Tensor, direction: str) -> Tensor:
        start = inputs.new_zeros(1, len(inputs), self.hidden_size)
        states: Tensor = torch.gru(
            inputs, start, self._weights(direction), True, 1, 0.0, self.training, False, True
        )[0]
        return states

    def _weights(self, direction: str) -> list[Tensor]:
        return [
            getattr(self, f"{name}_l0{direction}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]


def _turned(lengths: Tensor, most: int) -> Tensor:
    """Return positions (P, most) int64 that turn rows around within their ``lengths`` (P,)."""
    position = torch.arange(most, device=lengths.device)
    return (lengths[:, None] - 1 - position).where(position < lengths[:, None], position)
