"""Searching saved embeddings: exact nearest neighbours of a text or a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from vse_scale.data.shards import ShardDataset
from vse_scale.errors import ConfigError, DatasetError, UserError
from vse_scale.retrieval.embed import INDEX
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.ranks import nearest
from vse_scale.retrieval.saved import read_lines
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


class Index:
    """A folder that ``vse-scale embed`` finished.

    Attributes:
        folder: it.
        model: the model's folder, as recorded.
        sides: "images" or "captions" or both.
        dim: dimensions that the embeddings were cut to; None: they are whole.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``.

        Raises:
            DatasetError: it is missing, damaged or not finished.
        """
        try:
            described = mapping(read_json(folder / INDEX))
            self.sides = _sides(described["sides"])
            self.model = Path(described["model"])
            self.dim = _dim(described.get("dim"))
            self._source = mapping(described.get("source", {}))
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
        self.folder = folder
        self._lines = {side: read_lines(folder / f"{side}.jsonl") for side in self.sides}

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
        if chosen not in self.sides:
            raise ConfigError(f"{self.folder}: holds {' and '.join(self.sides)}, no {chosen}")
        rows = open_array(self.folder / f"{chosen}.npy")
        lines = self._lines[chosen]
        if rows.ndim != 2 or len(rows) != len(lines) or rows.shape[1] != queries.shape[1]:
            raise DatasetError(
                f"{self.folder}: {chosen}.npy is {rows.shape}, for {len(lines)} ids and queries of "
                f"width {queries.shape[1]}; embed again with this model"
            )
        scores, found = nearest(queries, as_rows(rows), top)
        hits = [
            [
                Hit(row, lines[row]["id"], str(lines[row].get("text", "")), score)
                for row, score in zip(some, their, strict=True)
            ]
            for some, their in zip(found.tolist(), scores.tolist(), strict=True)
        ]
        return chosen, hits

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
