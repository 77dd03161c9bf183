"""The protocol of pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn


class Pool(nn.Module):
    """Makes one vector of a variable number of them.

    ``forward(features, lengths)`` pools ``features`` (B, K, D), the first ``lengths`` (B,) vectors
    of each, into (B, D).

    Attributes:
        commutes: whether a Linear of the pooled vector is the pooled vector of a Linear. A Linear
            then sees one vector of each row, not K, and what is before it may be pooled once.
    """

    commutes: ClassVar[bool] = False

    def of_linear(
        self, linear: Callable[[Tensor], Tensor], features: Tensor, lengths: Tensor
    ) -> Tensor:
        """Pool what ``linear`` makes of each of ``features`` (B, K, C) into (B, D)."""
        if self.commutes:
            return linear(self(features, lengths).to(features.dtype))
        pooled: Tensor = self(linear(features), lengths)
        return pooled

    def weight_table(self, lengths: Tensor, steps: int) -> Tensor | None:
        """Return the weights of sorted values (R, steps) of each of ``lengths`` (R,).

        A row is zero beyond its length and sums to 1; the largest value of a channel comes first.
        None for a pooling that does not go by the order of values.
        """
        return None

    def assume_distinct(self, count: int) -> None:
        """Count with ``count`` different lengths in a batch whose lengths have no values."""
