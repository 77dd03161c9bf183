"""Retrieval examples with their pictures: some drawn at random, and the worst failures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vse_scale.data.shards import ImageRecord
from vse_scale.evaluation.encode import Embeddings
from vse_scale.evaluation.retrieval import nearest, query_ranks

Way = Literal["i2t", "t2i"]

_THUMBNAIL_SIDE = 240  # pixels; twice the size shown, for dense screens


class Pictures(Protocol):
    """What is asked of a dataset here; ``ShardDataset`` has it."""

    def image_bytes(self, image: int) -> npt.NDArray[np.uint8]:
        """Return the encoded image."""
        ...

    def record(self, image: int) -> ImageRecord:
        """Return the image's captions."""
        ...


@dataclass(frozen=True)
class Pick:
    """A query chosen for the report, by rows of the embeddings.

    Attributes:
        way: "i2t" if the query is an image, "t2i" if it is a caption.
        query: its row.
        rank: of its best right answer, 1 the best.
        worst: whether it was chosen as a failure.
        answers: the rows of its nearest candidates, best first.
        right: for each answer, whether it is right.
        scores: their similarities.
        best_right: the row of the best right answer, and ``best_right_score`` its similarity.
    """

    way: Way
    query: int
    rank: int
    worst: bool
    answers: tuple[int, ...]
    right: tuple[bool, ...]
    scores: tuple[float, ...]
    best_right: int
    best_right_score: float


@dataclass(frozen=True)
class Item:
    """A caption, or a picture (a data URI) with a caption that describes it."""

    text: str
    picture: str | None = None


@dataclass(frozen=True)
class Answer:
    """An item that was retrieved."""

    item: Item
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query with its first answers; ``missed`` is the right one where it is not among them."""

    way: Way
    rank: int
    worst: bool
    query: Item
    answers: tuple[Answer, ...]
    missed: Answer | None


def pick_examples(
    embeddings: Embeddings, *, each: int = 6, worst: int = 2, answers: int = 5, seed: int = 0
) -> list[Pick]:
    """Choose ``each`` queries of both directions, ``worst`` of them by the lowest rank.

    The rest are drawn at random, not picked for their looks. No image appears twice as the query,
    or the owner of the query, of one direction; a small split gives fewer.
    """
    owners = embeddings.caption_to_image
    ranks = query_ranks(embeddings.images, embeddings.captions, owners)
    rng = np.random.default_rng(seed)
    image_rows = ranks.image_queries
    picks = []
    for way, queries, way_ranks, query_images in (
        ("i2t", image_rows, ranks.i2t, image_rows),
        ("t2i", torch.arange(len(owners)), ranks.t2i, owners),
    ):
        chosen = _choose(way_ranks.numpy(), query_images.numpy(), each, worst, rng)
        rows = queries[torch.tensor(chosen)]
        sources, targets = embeddings.images, embeddings.captions
        if way == "t2i":
            sources, targets = targets, sources
        scores, found = nearest(sources[rows], targets, answers)
        for place, index in enumerate(chosen):
            query, image = int(rows[place]), int(query_images[index])
            own = torch.tensor([image])
            if way == "i2t":
                own = (owners == image).nonzero().squeeze(1)
            best_score, best = nearest(sources[query][None], targets[own], 1)
            picks.append(
                Pick(
                    way="i2t" if way == "i2t" else "t2i",
                    query=query,
                    rank=int(way_ranks[index]),
                    worst=place < worst,
                    answers=tuple(found[place].tolist()),
                    right=tuple(torch.isin(found[place], own).tolist()),
                    scores=tuple(scores[place].tolist()),
                    best_right=int(own[best[0, 0]]),
                    best_right_score=float(best_score),
                )
            )
    return picks


def illustrate(
    picks: Sequence[Pick], embeddings: Embeddings, dataset: Pictures
) -> tuple[Example, ...]:
    """Add words and thumbnails to ``picks``; ``dataset`` is what ``embeddings`` were made from."""
    owners = embeddings.caption_to_image
    items = _Items(dataset, owners)
    examples = []
    for pick in picks:
        query, answer = items.picture, items.caption
        if pick.way == "t2i":
            query, answer = answer, query
        answers = tuple(
            Answer(answer(row), score, right)
            for row, score, right in zip(pick.answers, pick.scores, pick.right, strict=True)
        )
        missed = None
        if not any(pick.right):
            missed = Answer(answer(pick.best_right), pick.best_right_score, right=True)
        examples.append(
            Example(pick.way, pick.rank, pick.worst, query(pick.query), answers, missed)
        )
    return tuple(examples)


def thumbnail(encoded: npt.NDArray[np.uint8] | bytes, side: int = _THUMBNAIL_SIDE) -> str:
    """Return the image, at most ``side`` pixels on both sides, as a JPEG data URI."""
    with Image.open(io.BytesIO(bytes(encoded))) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _choose(
    ranks: npt.NDArray[np.int64],
    images: npt.NDArray[np.int64],
    each: int,
    worst: int,
    rng: np.random.Generator,
) -> list[int]:
    """Return places in ``ranks``, the worst first, then the others as drawn."""
    chosen: list[int] = []
    used: set[int] = set()
    by_rank = np.argsort(-ranks, kind="stable")
    for limit, order in ((worst, by_rank), (each, rng.permutation(len(ranks)))):
        for place in order.tolist():
            if len(chosen) == limit:
                break
            if int(images[place]) not in used:
                used.add(int(images[place]))
                chosen.append(place)
    return chosen


class _Items:
    """Captions and thumbnails by row, each read once."""

    def __init__(self, dataset: Pictures, owners: Tensor) -> None:
        self._dataset = dataset
        self._owners = owners
        counts = owners.bincount()
        self._first = counts.cumsum(0) - counts
        self._pictures: dict[int, Item] = {}

    def caption(self, row: int) -> Item:
        image = int(self._owners[row])
        captions = self._dataset.record(image).captions
        return Item(captions[row - int(self._first[image])].text)

    def picture(self, row: int) -> Item:
        if row not in self._pictures:
            captions = self._dataset.record(row).captions
            text = captions[0].text if captions else f"image {row} without captions"
            self._pictures[row] = Item(text, thumbnail(self._dataset.image_bytes(row)))
        return self._pictures[row]
