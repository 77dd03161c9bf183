"""Retrieval examples with their pictures: some drawn at random, and the failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vse_scale.data.shards import ImageRecord
from vse_scale.html.thumbnail import THUMBNAIL_SIDE, thumbnail
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.metrics import DIRECTIONS
from vse_scale.retrieval.ranks import nearest, query_ranks


class Pictures(Protocol):
    """A dataset of pictures and captions, such as `ShardDataset`."""

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
        direction: its key, such as "i2t".
        query: its row.
        rank: of its best right answer, 1 the best.
        answers: the rows of its nearest candidates, best first.
        right: for each answer, whether it is right.
        scores: their similarities.
        best_right: the row of the best right answer, and ``best_right_score`` its similarity.
    """

    direction: str
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

    direction: str
    rank: int
    query: Item
    answers: tuple[Answer, ...]
    missed: Answer | None


@dataclass(frozen=True)
class Failures:
    """The queries whose first answer is wrong.

    Attributes:
        shown: the worst of them.
        total: the number of failures, by direction.
        queries: the number of queries, by direction.
    """

    shown: tuple[Example, ...]
    total: dict[str, int]
    queries: dict[str, int]


@dataclass(frozen=True)
class _Ranked:
    """The queries of one direction, by place among them.

    Attributes:
        direction: its key.
        queries: (Q,) their rows among the embeddings of their side.
        ranks: (Q,) of their best right answers.
        images: (Q,) the image that each is or belongs to.
        sources: (S, D) embeddings of the queries' side.
        targets: (T, D) embeddings of the candidates.
        owners: (T,) the image that each candidate is or belongs to.
    """

    direction: str
    queries: Tensor
    ranks: Tensor
    images: Tensor
    sources: Tensor
    targets: Tensor
    owners: Tensor


def _directions(embeddings: Embeddings) -> list[_Ranked]:
    images, captions = embeddings.images, embeddings.captions
    owners = embeddings.caption_to_image
    ranks = query_ranks(images, captions, owners)
    by_image, rows = torch.arange(len(images)), ranks.image_queries
    sides = {
        "image": (rows, rows, images, captions, owners),
        "text": (torch.arange(len(owners)), owners, captions, images, by_image),
    }
    ranked = []
    for key, direction in DIRECTIONS.items():
        queries, own, sources, targets, target_owners = sides[direction.query]
        found = getattr(ranks, key)
        ranked.append(_Ranked(key, queries, found, own, sources, targets, target_owners))
    return ranked


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
        picks += _picks(ranked, chosen, answers)
    return picks


def pick_failures(
    embeddings: Embeddings, *, most: int = 48, answers: int = 5
) -> tuple[list[Pick], dict[str, int], dict[str, int]]:
    """Choose the ``most`` worst failures of both directions, and count all of them.

    Returns:
        The picks, the worst first, and the numbers of failures and of queries by direction.
    """
    picks: list[Pick] = []
    total: dict[str, int] = {}
    queries: dict[str, int] = {}
    for ranked in _directions(embeddings):
        failed = int((ranked.ranks > 1).sum())
        worst = torch.argsort(ranked.ranks, descending=True, stable=True)[: min(most, failed)]
        picks += _picks(ranked, worst.tolist(), answers)
        total[ranked.direction], queries[ranked.direction] = failed, len(ranked.ranks)
    return sorted(picks, key=lambda pick: -pick.rank), total, queries


def _picks(ranked: _Ranked, chosen: Sequence[int], answers: int) -> list[Pick]:
    """Find the nearest answers of the ``chosen`` places of one direction."""
    if not chosen:
        return []
    rows = ranked.queries[torch.tensor(chosen)]
    scores, found = nearest(ranked.sources[rows], ranked.targets, answers)
    picks = []
    for place, index in enumerate(chosen):
        query = int(rows[place])
        own = (ranked.owners == ranked.images[index]).nonzero().squeeze(1)
        best_score, best = nearest(ranked.sources[query][None], ranked.targets[own], 1)
        picks.append(
            Pick(
                direction=ranked.direction,
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
        dataset: the split itself.
        side: of the thumbnails in pixels, at most.
    """
    items = _Items(dataset, embeddings.caption_to_image, side)
    makers = {"image": (items.picture, items.caption), "text": (items.caption, items.picture)}
    examples = []
    for pick in picks:
        query, answer = makers[DIRECTIONS[pick.direction].query]
        answers = tuple(
            Answer(answer(row), score, right)
            for row, score, right in zip(pick.answers, pick.scores, pick.right, strict=True)
        )
        missed = None
        if not any(pick.right):
            missed = Answer(answer(pick.best_right), pick.best_right_score, right=True)
        examples.append(Example(pick.direction, pick.rank, query(pick.query), answers, missed))
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
