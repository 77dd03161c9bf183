"""A bag of words: the mean of embeddings, the plainest text encoder that there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import TextSettings


@dataclass(frozen=True, kw_only=True)
class BagSettings(TextSettings):
    min_words: int = 1

    def describe(self):
        return "bag of words"

    def make_tokenizer(self, captions):
        return CaptionTokenizer.train_words(captions, self.min_words)

    def expected_vocab_size(self):
        return 1000


class BagTower(nn.Module):
    Settings = BagSettings
    positions = None

    def __init__(self, settings, embed_dim, pool="mean", *, vocab_size, pad_id, dropout=None):
        super().__init__()
        self._settings = settings
        self.encoder = nn.Embedding(vocab_size, embed_dim)
        self.pool = make_pool(pool)

    def forward(self, token_ids, lengths):
        return self.pool(self.encoder(token_ids), lengths)

    def standalone(self):
        return replace(self._settings, tokenizer=None)

    def recompute_activations(self):
        pass
