"""Crisscrossed Captions: retrieval within and between images and captions of the COCO 5K splits.

Parekh et al., "Crisscrossed Captions: Extended Intramodal and Intermodal Semantic Similarity
Judgments for MS-COCO", EACL 2021. The ratings are read from the CSV files that Google publishes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vse_kernels import retrieval_ranks
from vse_scale.errors import DatasetError
from vse_scale.evaluation.encode import Embeddings
from vse_scale.evaluation.retrieval import DirectionRecalls, matching_rows

Task = Literal["i2t", "t2i", "t2t", "i2i"]
Positives = Mapping[Task, Tensor]
"""For each task (n, 2) int64, the rows of a query and of a right answer to it."""

TASKS: dict[Task, str] = {
    "i2t": "image to text",
    "t2i": "text to image",
    "t2t": "text to text",
    "i2i": "image to image",
}
# Ratings, 0 to 5, from which on a pair counts as positive.
_CAPTION_THRESHOLD = 3.0
_IMAGE_THRESHOLD = 2.5
_CHUNK = 65536  # pairs whose similarities are computed at once


@dataclass(frozen=True)
class CxcEvaluation:
    """Recalls of the four tasks, and over how many queries each was taken."""

    recalls: dict[Task, DirectionRecalls]
    queries: dict[Task, int]
    as_published: bool

    def to_dict(self) -> dict[str, object]:
        """Return the figures for JSON; ``rsum`` is that of i2t and t2i."""
        between = (self.recalls["i2t"], self.recalls["t2i"])
        return {
            **{task: asdict(recalls) for task, recalls in self.recalls.items()},
            "rsum": sum(way.r1 + way.r5 + way.r10 for way in between),
            "protocol": "cxc",
            "as_published": self.as_published,
            "queries": dict(self.queries),
        }

    def table(self) -> str:
        """Return an aligned table for a terminal, under 80 columns, without a final newline."""
        reading = ", as published" if self.as_published else ""
        lines = [f"cxc{reading}", "", f"{'':16}{'queries':>9}{'R@1':>8}{'R@5':>8}{'R@10':>8}"]
        for task, way in self.recalls.items():
            figures = f"{way.r1:>8.1f}{way.r5:>8.1f}{way.r10:>8.1f}"
            lines.append(f"{TASKS[task]:16}{self.queries[task]:>9,}{figures}")
        return "\n".join(lines)


def evaluate_cxc(
    embeddings: Embeddings, folder: Path, split: str = "test", *, as_published: bool = False
) -> CxcEvaluation:
    """Rank a COCO 5K split by the ratings in ``folder``.

    Args:
        embeddings: holds every image and caption of the ratings; others are left out.
        folder: holds ``sits_{split}.csv``, ``sts_{split}.csv`` and ``sis_{split}.csv``.
        split: "test" or "val".
        as_published: leave the query itself in its own ranking with a similarity of zero, as the
            code of VSE-infinity does, where it can still come before a right answer.

    Raises:
        DatasetError: a file is missing or malformed, or names what ``embeddings`` lack.
    """
    embeddings = _rated_part(embeddings, folder, split)
    positives = read_positives(embeddings, folder, split)
    return rank_tasks(embeddings, positives, as_published=as_published)


def read_positives(embeddings: Embeddings, folder: Path, split: str) -> dict[Task, Tensor]:
    """Return the right answers of every task.

    Image and caption: the caption's own image, and every pair rated 3 or more (SITS). Two
    captions: those of one image, and every pair rated 3 or more (STS). Two images: every pair
    rated 2.5 or more (SIS). All of them in both directions, and nothing answers itself.
    """
    image_row = {_number(name): row for row, name in enumerate(embeddings.image_ids)}
    caption_row = {_number(name): row for row, name in enumerate(embeddings.caption_ids)}
    owners = embeddings.caption_to_image.tolist()

    own = set(enumerate(owners))
    rated = _pairs(folder / f"sits_{split}.csv", _CAPTION_THRESHOLD)
    caption_image = own | set(_rows(rated, caption_row, image_row))

    by_image: list[list[int]] = [[] for _ in embeddings.image_ids]
    for caption, image in own:
        by_image[image].append(caption)
    captions = {(a, b) for group in by_image for a in group for b in group}
    rated = _pairs(folder / f"sts_{split}.csv", _CAPTION_THRESHOLD)
    captions |= set(_rows(rated, caption_row, caption_row))

    rated = _pairs(folder / f"sis_{split}.csv", _IMAGE_THRESHOLD)
    images = set(_rows(rated, image_row, image_row))
    return {
        "i2t": _tensor({(image, caption) for caption, image in caption_image}),
        "t2i": _tensor(caption_image),
        "t2t": _tensor(_both_ways(captions)),
        "i2i": _tensor(_both_ways(images)),
    }


def rank_tasks(
    embeddings: Embeddings, positives: Positives, *, as_published: bool = False
) -> CxcEvaluation:
    """Rank all tasks; a query without a right answer is no query."""
    images, captions = matching_rows(embeddings.images, embeddings.captions)
    sides = {
        "i2t": (images, captions),
        "t2i": (captions, images),
        "t2t": (captions, captions),
        "i2i": (images, images),
    }
    recalls: dict[Task, DirectionRecalls] = {}
    counts: dict[Task, int] = {}
    for task in TASKS:
        queries, candidates = sides[task]
        pairs = positives[task][torch.argsort(positives[task][:, 0], stable=True)]
        answers = pairs[:, 0].bincount(minlength=len(queries))
        offsets = torch.cat([answers.new_zeros(1), answers.cumsum(0)])
        itself = torch.arange(len(queries)) if queries is candidates else None
        ranks = retrieval_ranks(queries, candidates, offsets, pairs[:, 1], excluded=itself)
        if as_published and itself is not None:
            # The query is one more candidate, of similarity zero.
            ranks += (_best_scores(queries, candidates, pairs) <= 0).long()
        ranks = ranks[answers > 0]
        recalls[task] = DirectionRecalls.from_ranks(ranks)
        counts[task] = len(ranks)
    return CxcEvaluation(recalls, counts, as_published)


def _best_scores(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Tensor:
    """Return (M,) the similarity of each query's best right answer, -inf where it has none."""
    best = queries.new_full((len(queries),), -torch.inf)
    for part in torch.split(pairs, _CHUNK):
        scores = (queries[part[:, 0]] * candidates[part[:, 1]]).sum(dim=1)
        best.scatter_reduce_(0, part[:, 0], scores, "amax")
    return best


def _rated_part(embeddings: Embeddings, folder: Path, split: str) -> Embeddings:
    """Keep the captions that were rated with their own image, and these images.

    COCO has 25,010 captions for the 5,000 test images, of which the ratings know 25,000.
    """
    pairs = list(_pairs(folder / f"sits_{split}.csv", threshold=0.0))
    rated_captions = {caption for caption, _ in pairs}
    rated_images = {image for _, image in pairs}
    captions = [
        row for row, name in enumerate(embeddings.caption_ids) if _number(name) in rated_captions
    ]
    images = [row for row, name in enumerate(embeddings.image_ids) if _number(name) in rated_images]
    new_row = torch.full((len(embeddings.images),), -1)
    new_row[images] = torch.arange(len(images))
    owners = new_row[embeddings.caption_to_image[captions]]
    for what, rows, rated in (
        ("captions", captions, rated_captions),
        ("images", images, rated_images),
    ):
        if len(rows) != len(rated):
            raise DatasetError(
                f"{folder}: rates {len(rated):,} {what} of split {split}, of which the evaluated "
                f"data has {len(rows):,}; evaluate the COCO 5K {split} split with COCO's own ids"
            )
    if (owners < 0).any():
        raise DatasetError(f"{folder}: rates captions of images that it does not rate")
    return replace(
        embeddings,
        images=embeddings.images[images],
        captions=embeddings.captions[captions],
        caption_to_image=owners,
        image_ids=tuple(embeddings.image_ids[row] for row in images),
        caption_ids=tuple(embeddings.caption_ids[row] for row in captions),
    )


def _pairs(file: Path, threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the numbers in the first two columns of every row rated at least ``threshold``."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.reader(lines)
            columns = next(reader, [])
            if len(columns) < 3 or columns[2] != "agg_score":
                raise DatasetError(
                    f"{file}: its columns are {columns}, without agg_score in the third place; "
                    "give the aggregated ratings, not the raw ones"
                )
            for row in reader:
                if float(row[2]) >= threshold:
                    yield _number(row[0]), _number(row[1])
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read ({error.strerror}); give the folder of CxC's CSV files"
        ) from error
    except (IndexError, ValueError) as error:
        raise DatasetError(f"{file}: is damaged ({error}); download it again") from error


def _number(name: int | str) -> int:
    """Return COCO's own number: of 7, "7", "COCO_val2014_000000000007.jpg" and "x:sentid:7"."""
    digits = re.findall(r"\d+", str(name))
    if not digits:
        raise DatasetError(f"{name!r} holds no COCO id; evaluate a dataset with COCO's own ids")
    return int(digits[-1])


def _rows(
    pairs: Iterator[tuple[int, int]], first: dict[int, int], second: dict[int, int]
) -> Iterator[tuple[int, int]]:
    for a, b in pairs:
        if a not in first or b not in second:
            raise DatasetError(f"the ratings name {a} and {b}, which are not both in the data")
        yield first[a], second[b]


def _both_ways(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {way for a, b in pairs if a != b for way in ((a, b), (b, a))}


def _tensor(pairs: set[tuple[int, int]]) -> Tensor:
    ordered: Sequence[tuple[int, int]] = sorted(pairs)
    return torch.tensor(ordered, dtype=torch.int64).reshape(-1, 2)
