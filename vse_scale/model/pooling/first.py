"""The first vector alone: [CLS] of a text encoder that has one."""

from __future__ import annotations

from torch import Tensor

from vse_scale.model.pooling.base import Pool


class FirstPool(Pool):
    """Take the first of a variable number of vectors, as sentence encoders take [CLS].

    Of an image it is the upper left cell, or the first region.
    """

    commutes = True

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the first of ``features`` (B, K, D) of each row, (B, D)."""
        return features[:, 0]
