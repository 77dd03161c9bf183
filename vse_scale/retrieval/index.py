"""Searching saved embeddings: exact nearest neighbours of a text or a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vse_scale.console import log
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ConfigError, DatasetError, UserError
from vse_scale.retrieval.approximate import Approximate, open_approximate
from vse_scale.retrieval.embed import INDEX
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.lines import Lines
from vse_scale.retrieval.ranks import nearest
from vse_scale.retrieval.similarities import as_rows, open_array
from vse_scale.retrieval.sources import read_checked
from vse_shards.images import Rejected
from vse_shards.json_text import mapping, read_json
from vse_shards.notes import shown
from vse_shards.sources.base import is_unicode
from vse_shards.storage import locate

SideName = Literal["images", "captions"]


@dataclass(frozen=True)
class Hit:
    """An answer: its row, its id, its words where it has some, and its similarity."""

    row: int
    id: int | str
    text: str
    score: float


@dataclass
class _Rows:
    """The embeddings of a side, their approximate index, and whether all are known as finite."""

    rows: NDArray[np.floating]
    approximate: Approximate | None
    finite: bool = False


class Index:
    """A folder that ``vse-scale embed`` finished.

    Attributes:
        folder: it.
        model: the model's folder, as recorded.
        sides: "images" or "captions" or both.
        dim: dimensions that the embeddings were cut to; None: they are whole.
    """

    def __init__(self, folder: Path, *, exact: bool = False) -> None:
        """Open ``folder``.

        Args:
            folder: that `vse_scale.retrieval.embed` wrote.
            exact: whether all rows are searched even where there is an approximate index.

        Raises:
            DatasetError: it is missing, damaged or not finished.
        """
        try:
            described = mapping(read_json(folder / INDEX))
            self.sides = _sides(described["sides"])
            self.model = Path(described["model"])
            self.dim = _dim(described.get("dim"))
            self._source = mapping(described.get("source", {}))
            self._weights = described.get("weights_sha256")
        except OSError as error:
            raise DatasetError(
                f"{folder}: is no index, {INDEX} cannot be read ({error.strerror}); give a folder "
                "that `vse-scale embed` wrote"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{folder / INDEX}: is damaged ({error}); embed again") from error
        for side in self.sides:
            if not (folder / f"{side}.npy").is_file():
                raise DatasetError(
                    f"{folder}: {side}.npy is missing; run the same `vse-scale embed` to finish it"
                )
        self.folder, self._exact = folder, exact
        self._lines = {side: Lines(folder / f"{side}.jsonl") for side in self.sides}
        self._opened: dict[SideName, _Rows] = {}

    def check_model(self, folder: Path, weights_sha256: str) -> None:
        """Raise ConfigError where other weights than those of ``folder`` made the embeddings.

        Distances between embeddings of two models mean nothing. Folders of earlier releases, which
        lack the digest, are taken.
        """
        if self._weights not in (None, weights_sha256):
            raise ConfigError(
                f"{self.folder}: was embedded with other weights (sha256 {self._weights!s:.12}) "
                f"than {folder} has ({weights_sha256:.12}); embed again with this model, or give "
                "--model DIR of the one that it was embedded with"
            )

    def search(
        self, queries: Tensor, top: int, side: SideName | None = None
    ) -> tuple[SideName, list[list[Hit]]]:
        """Return the ``top`` nearest rows to each of ``queries`` (Q, D), best first.

        Args:
            queries: on the device that does the work.
            top: how many.
            side: what to search; None takes images where there are some.

        Raises:
            ConfigError: the index has no such side.
            DatasetError: its embeddings are damaged, or of another width than the queries.
        """
        chosen = side or self.sides[0]
        opened = self._open(chosen)
        if opened.rows.shape[1] != queries.shape[1]:
            raise self._unfit(chosen, opened.rows.shape, queries.shape[1])
        if opened.approximate is not None:
            scores, found = opened.approximate.search(queries, top)
        else:
            scores, found = nearest(queries, as_rows(opened.rows), top, checked=opened.finite)
            opened.finite = True
        hits = [
            [
                self.hit(chosen, row, score)
                for row, score in zip(some, their, strict=True)
                if row >= 0
            ]
            for some, their in zip(found.tolist(), scores.tolist(), strict=True)
        ]
        return chosen, hits

    def rows(self, side: SideName) -> NDArray[np.floating]:
        """Return the embeddings (N, D) of a side, mapped.

        Raises:
            ConfigError: the index has no such side.
            DatasetError: they are damaged.
        """
        return self._open(side).rows

    def _open(self, side: SideName) -> _Rows:
        """Open a side once."""
        if side not in self.sides:
            raise ConfigError(f"{self.folder}: holds {' and '.join(self.sides)}, no {side}")
        if side not in self._opened:
            rows = open_array(self.folder / f"{side}.npy")
            if rows.ndim != 2 or len(rows) != len(self._lines[side]):
                raise self._unfit(side, rows.shape)
            self._opened[side] = _Rows(rows, self._approximate(side, rows))
        return self._opened[side]

    def _approximate(self, side: SideName, rows: NDArray[np.floating]) -> Approximate | None:
        if self._exact:
            return None
        found = open_approximate(self.folder, side, rows)
        if found is not None:
            log.info("%s: %s; --exact searches all", side, found[1].in_words())
            return found[0]
        if (self.folder / f"{side}.faiss.json").is_file():
            log.info(
                "%s: all are searched; the index of faiss needs it: pip install 'vse-scale[faiss]'",
                side,
            )
        return None

    def _unfit(
        self, side: SideName, shape: tuple[int, ...], width: int | None = None
    ) -> DatasetError:
        queries = "" if width is None else f" and queries of width {width}"
        return DatasetError(
            f"{self.folder}: {side}.npy is {shape}, for {len(self._lines[side])} ids{queries}; "
            "embed again with this model"
        )

    def count(self, side: SideName) -> int:
        """Return how many rows a side has."""
        return len(self._lines[side])

    def hit(self, side: SideName, row: int, score: float = 0.0) -> Hit:
        """Return a row of a side as an answer."""
        line = self._lines[side][row]
        return Hit(row, line["id"], str(line.get("text", "")), score)

    def picture(self, side: SideName, hit: Hit) -> bytes | None:
        """Return the encoded image that a hit is, or belongs to; None where it cannot be found."""
        try:
            if "data" in self._source:
                row = hit.row if side == "images" else int(self._lines[side][hit.row]["image"])
                dataset = self._dataset
                return bytes(dataset.image_bytes(row)) if dataset.holds("images") else None
            if "images" in self._source and side == "images":
                # An id that leads out of the folder is marked, and nothing is found there.
                return read_checked(Path(locate(self._source["images"], str(hit.id))))
        # The source has gone, or is none; the ids stand for themselves.
        except (OSError, UserError, Rejected, ValueError, LookupError, TypeError):
            return None
        return None

    @cached_property
    def _dataset(self) -> ShardDataset:
        return ShardDataset(self._source["data"], self._source["split"])


def _sides(named: Any) -> tuple[SideName, ...]:
    """Return the sides that an index names; ValueError if they are others than there are."""
    sides = get_args(SideName)
    if not isinstance(named, dict | list) or not set(sides) >= set(named) or not named:
        raise ValueError(f"its sides are {named!r:.80}, not {' or '.join(sides)}")
    return tuple(named)


def _dim(named: Any) -> int | None:
    """Return the dimensions that an index names; ValueError if they are no number above 0."""
    if named is None or (type(named) is int and named > 0):
        return named
    raise ValueError(f"its dim is {named!r:.80}, no number above 0")


def embed_query(encoder: Encoder, text: str) -> Tensor:
    """Embed one query as (1, D).

    Raises:
        ConfigError: it is empty, or longer than the text encoder takes.
    """
    if not is_unicode(text):
        raise ConfigError(
            f"the query {shown(text)} is not UTF-8; type it in the terminal's encoding"
        )
    if not text.strip():
        raise ConfigError("the query is empty; describe what to look for")
    limit = encoder.model.input_spec.max_tokens
    assert encoder.tokenizer is not None
    length = int(encoder.tokenizer.encode([text], max_tokens=len(text) + 2)[1][0])
    if length > limit:
        raise ConfigError(
            f"the query has {len(text.split()):,} words, {length:,} tokens, and the model takes "
            f"{limit}; shorten it"
        )
    return encoder.texts([text])


def embed_picture(encoder: Encoder, file: Path) -> Tensor:
    """Embed one image file as (1, D).

    Raises:
        ConfigError: it cannot be read, or is no whole image.
    """
    try:
        picture = read_checked(file)
    except OSError as error:
        raise ConfigError(f"--image {file}: cannot be read ({error.strerror})") from error
    except Rejected as error:
        raise ConfigError(f"--image {file}: is no whole image ({error})") from error
    return encoder.pictures([picture])
