"""Retrieval examples with their pictures: some drawn at random, and the failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vse_scale.data.shards import ImageRecord
from vse_scale.html.thumbnail import THUMBNAIL_SIDE, thumbnail
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.ranks import nearest, query_ranks

Way = Literal["i2t", "t2i"]


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
        answers: the rows of its nearest candidates, best first.
        right: for each answer, whether it is right.
        scores: their similarities.
        best_right: the row of the best right answer, and ``best_right_score`` its similarity.
    """

    way: Way
    query: int
    rank: int
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
    query: Item
    answers: tuple[Answer, ...]
    missed: Answer | None


@dataclass(frozen=True)
class Failures:
    """The queries of which another answer came first.

    Attributes:
        shown: the worst of them.
        total: how many there are, by direction.
        queries: out of how many, by direction.
    """

    shown: tuple[Example, ...]
    total: dict[Way, int]
    queries: dict[Way, int]


@dataclass(frozen=True)
class _Ranked:
    """One direction: rows of the queries, their ranks, and the image that each is or belongs to."""

    way: Way
    queries: Tensor
    ranks: Tensor
    images: Tensor


def _directions(embeddings: Embeddings) -> tuple[_Ranked, _Ranked]:
    owners = embeddings.caption_to_image
    ranks = query_ranks(embeddings.images, embeddings.captions, owners)
    rows = ranks.image_queries
    return (
        _Ranked("i2t", rows, ranks.i2t, rows),
        _Ranked("t2i", torch.arange(len(owners)), ranks.t2i, owners),
    )


def pick_examples(
    embeddings: Embeddings, *, each: int = 6, answers: int = 5, seed: int = 0
) -> list[Pick]:
    """Choose ``each`` queries of both directions at random, not for their looks.

    No image appears twice as the query, or the owner of the query, of one direction; a small split
    gives fewer.
    """
    rng = np.random.default_rng(seed)
    picks = []
    for ranked in _directions(embeddings):
        chosen = _unlike(rng.permutation(len(ranked.ranks)).tolist(), ranked.images.tolist(), each)
        picks += _picks(embeddings, ranked, chosen, answers)
    return picks


def pick_failures(
    embeddings: Embeddings, *, most: int = 48, answers: int = 5
) -> tuple[list[Pick], dict[Way, int], dict[Way, int]]:
    """Choose the ``most`` worst failures of both directions, and count all of them.

    Returns:
        The picks, the worst first, and the numbers of failures and of queries by direction.
    """
    picks: list[Pick] = []
    total: dict[Way, int] = {}
    queries: dict[Way, int] = {}
    for ranked in _directions(embeddings):
        failed = int((ranked.ranks > 1).sum())
        worst = torch.argsort(ranked.ranks, descending=True, stable=True)[: min(most, failed)]
        picks += _picks(embeddings, ranked, worst.tolist(), answers)
        total[ranked.way], queries[ranked.way] = failed, len(ranked.ranks)
    return sorted(picks, key=lambda pick: -pick.rank), total, queries


def _picks(
    embeddings: Embeddings, ranked: _Ranked, chosen: Sequence[int], answers: int
) -> list[Pick]:
    """Find the nearest answers of the ``chosen`` places of one direction."""
    if not chosen:
        return []
    owners = embeddings.caption_to_image
    rows = ranked.queries[torch.tensor(chosen)]
    sources, targets = embeddings.images, embeddings.captions
    if ranked.way == "t2i":
        sources, targets = targets, sources
    scores, found = nearest(sources[rows], targets, answers)
    picks = []
    for place, index in enumerate(chosen):
        query, image = int(rows[place]), int(ranked.images[index])
        own = torch.tensor([image])
        if ranked.way == "i2t":
            own = (owners == image).nonzero().squeeze(1)
        best_score, best = nearest(sources[query][None], targets[own], 1)
        picks.append(
            Pick(
                way=ranked.way,
                query=query,
                rank=int(ranked.ranks[index]),
                answers=tuple(found[place].tolist()),
                right=tuple(torch.isin(found[place], own).tolist()),
                scores=tuple(scores[place].tolist()),
                best_right=int(own[best[0, 0]]),
                best_right_score=float(best_score),
            )
        )
    return picks


def illustrate(
    picks: Sequence[Pick],
    embeddings: Embeddings,
    dataset: Pictures,
    side: int = THUMBNAIL_SIDE,
) -> tuple[Example, ...]:
    """Add words and thumbnails to ``picks``.

    Args:
        picks: from ``embeddings``.
        embeddings: of the split.
        dataset: what they were made from.
        side: of the thumbnails in pixels, at most.
    """
    items = _Items(dataset, embeddings.caption_to_image, side)
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
        examples.append(Example(pick.way, pick.rank, query(pick.query), answers, missed))
    return tuple(examples)


def _unlike(places: Sequence[int], images: Sequence[int], most: int) -> list[int]:
    """Return the first ``most`` places whose images differ."""
    chosen: dict[int, int] = {}
    for place in places:
        if len(chosen) < most:
            chosen.setdefault(images[place], place)
    return list(chosen.values())


class _Items:
    """Captions and thumbnails by row, each read once."""

    def __init__(self, dataset: Pictures, owners: Tensor, side: int) -> None:
        self._dataset, self._side = dataset, side
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
            self._pictures[row] = Item(text, thumbnail(self._dataset.image_bytes(row), self._side))
        return self._pictures[row]
