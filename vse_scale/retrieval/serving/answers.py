"""The answers of the search server, before they are HTTP."""

from __future__ import annotations

import torch
from torch import Tensor

from vse_scale.errors import ConfigError
from vse_scale.html.thumbnail import small_jpeg
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.index import Hit, Index, SideName, embed_query
from vse_shards.images import ImageOptions, Rejected, check_image


class Answers:
    """An index and the model that embeds what is asked of it.

    Args:
        index: that is searched.
        encoder: of its model.

    Raises:
        DatasetError: the index is damaged, or of another model.
    """

    def __init__(self, index: Index, encoder: Encoder) -> None:
        self.index = index
        self._encoder = encoder
        # A mismatch is found now rather than by the first who asks.
        width = index.dim or encoder.model.config.embed_dim
        for side in index.sides:
            index.search(torch.zeros(1, width, device=encoder.device), 1, side)

    def search(
        self, text: str | None, picture: bytes | None, weight: float, side: SideName, top: int
    ) -> list[Hit]:
        """Return the ``top`` rows of ``side`` nearest to words, to a picture, or to both.

        Args:
            text: the words.
            picture: the bytes of an image file.
            weight: share of the picture where both are given, from 0 to 1.
            side: to search.
            top: how many.

        Raises:
            ConfigError: there is neither, the words are too many, or the picture is no whole image.
        """
        vectors: list[tuple[float, Tensor]] = []
        if text is not None:
            vectors.append((1.0 - weight if picture is not None else 1.0, self._words(text)))
        if picture is not None:
            vectors.append((weight if text is not None else 1.0, self._picture(picture)))
        if not vectors:
            raise ConfigError("nothing to look for; give a text, a picture, or both")
        query = sum((share * vector for share, vector in vectors), torch.zeros(1))
        query = torch.nn.functional.normalize(query, dim=1)
        _, (hits,) = self.index.search(query.to(self._encoder.device), top, side)
        return hits

    def small_picture(self, side: SideName, row: int) -> bytes | None:
        """Return the picture of a row as a small JPEG; None where it has none, or is not there."""
        if not 0 <= row < self.index.count(side):
            return None
        found = self.index.picture(side, self.index.hit(side, row))
        return None if found is None else small_jpeg(found)

    def _words(self, text: str) -> Tensor:
        return embed_query(self._encoder, text)

    def _picture(self, data: bytes) -> Tensor:
        try:
            check_image(data, ImageOptions())
        except Rejected as error:
            raise ConfigError(f"the picture is no whole image ({error})") from error
        return self._encoder.pictures([data])
