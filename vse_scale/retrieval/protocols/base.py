"""A protocol: the rules by which one split's rankings become published figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.gallery import Gallery
from vse_scale.world.processes import ALONE, Processes


class Result(Protocol):
    """The figures of a split under a protocol."""

    def table(self) -> str:
        """Return an aligned table for a terminal, under 80 columns, without a final newline."""
        ...

    def markdown(self, name: str) -> str:
        """Return tables for a paper or a page, one line each called ``name``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        ...


class RankingProtocol(ABC):
    """Checks and ranks one split.

    Attributes:
        options: keyword arguments of the constructor; `vse-scale eval` offers each as an option
            of its name, and refuses it with a protocol that does not list it.
        required: options that cannot be left out, each with what to give.
        needs_source_order: its figures depend on the order of the images, which a build of the
            dataset shuffles.
        takes_similarities: it ranks `Similarities` too, which compare images with captions alone.
    """

    options: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[Mapping[str, str]] = {}
    needs_source_order: ClassVar[bool] = False
    takes_similarities: ClassVar[bool] = True

    def check(self, split: str, captions_per_image: NDArray[np.int64] | None = None) -> None:
        """Raise, before anything is encoded, an error that ranking would end in.

        Args:
            split: the name of the split.
            captions_per_image: (I,) captions of each image, where a dataset tells.

        Raises:
            DatasetError: the split, or a file of the protocol, is not fit to be ranked.
        """
        return  # most protocols learn nothing before they rank

    @abstractmethod
    def rank(
        self,
        gallery: Gallery,
        *,
        split: str = "test",
        order: Sequence[int | str] | None = None,
        processes: Processes = ALONE,
    ) -> Result:
        """Rank ``gallery``.

        Args:
            gallery: a split in the order of its dataset.
            split: its name.
            order: image ids in the order of the source, for a protocol that needs it.
            processes: that share the work; all call with the same gallery.

        Raises:
            DatasetError: the gallery is not what the protocol ranks.
        """


def needed_embeddings(gallery: Gallery) -> Embeddings:
    """Return ``gallery`` for a protocol that compares items of one kind with each other.

    Raises:
        TypeError: it holds similarities of images and captions alone.
    """
    if not isinstance(gallery, Embeddings):
        raise TypeError("this protocol ranks embeddings; similarities of pairs do not suffice")
    return gallery
