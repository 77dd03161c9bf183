"""The text tower over words: embedding, bidirectional GRU, pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vse_scale.model.pooling.mean import PoolKind, make_pool

if TYPE_CHECKING:
    from vse_scale.config import TextConfig

_EMBEDDING_RANGE = 0.1  # of the uniform initial word embeddings, as published


class BiGRUTextEncoder(nn.Module):
    """Word embedding -> bidirectional GRU, its directions averaged -> pooling.

    Below ``encoder`` parameters have the names of published checkpoints: ``embed.*`` and ``rnn.*``;
    the published ``gpool.*`` is ``pool.*`` here. There is no projection: a direction's state has
    the embedding's channels.

    Args:
        config: the text section of a model's configuration.
        embed_dim: D of the embeddings.
        vocab_size: number of token ids.
        pool: makes one vector of a caption's.
    """

    def __init__(
        self, config: TextConfig, embed_dim: int, *, vocab_size: int, pool: PoolKind = "gpo"
    ) -> None:
        super().__init__()
        self.encoder = _Words(vocab_size, config.word_channels, embed_dim)
        self.pool = make_pool(pool)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``token_ids`` (P, L), of which ``lengths`` (P,) are no padding, into (P, D)."""
        pooled: Tensor = self.pool(self.encoder(token_ids, lengths), lengths)
        return pooled

    def architecture(self) -> dict[str, Any]:
        """Return nothing: the configuration says all that there is."""
        return {}


class _Words(nn.Module):
    """Word embedding and GRU: (P, L) ids to (P, L, D) vectors."""

    def __init__(self, vocab_size: int, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, channels)
        nn.init.uniform_(self.embed.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        self.rnn = RaggedGRU(channels, embed_dim)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
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
        position = torch.arange(inputs.shape[1], device=inputs.device)
        turned = (lengths[:, None] - 1 - position).where(position < lengths[:, None], position)
        order = turned[..., None]
        backward = self._run(inputs.gather(1, order.expand_as(inputs)), "_reverse")
        return self._run(inputs, ""), backward.gather(1, order.expand_as(backward))

    def _run(self, inputs: Tensor, direction: str) -> Tensor:
        weights = [
            getattr(self, f"{name}_l0{direction}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        start = inputs.new_zeros(1, len(inputs), self.hidden_size)
        states: Tensor = torch.gru(
            inputs, start, weights, True, 1, 0.0, self.training, False, True
        )[0]
        return states
