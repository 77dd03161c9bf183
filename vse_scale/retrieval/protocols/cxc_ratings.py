"""The ratings of Crisscrossed Captions, read from the CSV files that Google publishes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.protocols.coco_ids import number, rated_number
from vse_scale.retrieval.protocols.correlation import Rated
from vse_shards.plain_files import open_plain

Task: TypeAlias = str
"""i2t, t2i, t2t or i2i: of what kind queries and candidates are."""
Positives = Mapping[Task, Tensor]
"""For each task (n, 2) int64, the rows of a query and of a right answer to it."""

RATED = {"sits": ("text", "image"), "sis": ("image", "image"), "sts": ("text", "text")}
"""The sides of the model whose items each file pairs, its first column's first."""

# Ratings, 0 to 5, from which on a pair counts as positive.
_CAPTION_THRESHOLD = 3.0
_IMAGE_THRESHOLD = 2.5


def check_ratings(folder: Path, split: str) -> None:
    """Raise DatasetError where one of the three files of ratings is missing or malformed."""
    for task in RATED:
        next(_ratings(folder / f"{task}_{split}.csv"), None)


def read_positives(embeddings: Embeddings, folder: Path, split: str) -> dict[Task, Tensor]:
    """Return the right answers of every task.

    Image and caption: the caption's own image, and every pair rated 3 or more (SITS). Two
    captions: those of one image, and every pair rated 3 or more (STS). Two images: every pair
    rated 2.5 or more (SIS). All of them in both directions, and nothing answers itself.
    """
    image_row = {number(name): row for row, name in enumerate(embeddings.image_ids)}
    caption_row = {number(name): row for row, name in enumerate(embeddings.caption_ids)}
    own = set(enumerate(embeddings.caption_to_image.tolist()))
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


def rated_part(embeddings: Embeddings, folder: Path, split: str) -> Embeddings:
    """Keep the captions that were rated with their own image, and these images.

    COCO has 25,010 captions for the 5,000 test images, of which the ratings know 25,000.
    """
    pairs = list(_pairs(folder / f"sits_{split}.csv", threshold=0.0))
    rated_captions = {caption for caption, _ in pairs}
    rated_images = {image for _, image in pairs}
    captions = [
        row for row, name in enumerate(embeddings.caption_ids) if number(name) in rated_captions
    ]
    images = [row for row, name in enumerate(embeddings.image_ids) if number(name) in rated_images]
    new_row = torch.full((len(embeddings.images),), -1)
    new_row[images] = torch.arange(len(images))
    image_index = new_row[embeddings.caption_to_image[captions]]
    for what, rows, rated in (
        ("captions", captions, rated_captions),
        ("images", images, rated_images),
    ):
        if len(rows) != len(rated):
            raise DatasetError(
                f"{folder}: rates {len(rated):,} {what} of split {split}, of which the evaluated "
                f"data has {len(rows):,}; evaluate the COCO 5K {split} split with COCO's own ids"
            )
    if (image_index < 0).any():
        raise DatasetError(f"{folder}: rates captions of images that it does not rate")
    return replace(
        embeddings,
        images=embeddings.images[images],
        captions=embeddings.captions[captions],
        caption_to_image=image_index,
        image_ids=tuple(embeddings.image_ids[row] for row in images),
        caption_ids=tuple(embeddings.caption_ids[row] for row in captions),
    )


def read_ratings(embeddings: Embeddings, folder: Path, split: str) -> dict[str, Rated]:
    """Return every rated pair of the three correlation tasks, each as often as it was rated."""
    row_of = {
        "image": {number(name): row for row, name in enumerate(embeddings.image_ids)},
        "text": {number(name): row for row, name in enumerate(embeddings.caption_ids)},
    }
    result = {}
    for task, (first, second) in RATED.items():
        rows = list(_ratings(folder / f"{task}_{split}.csv"))
        pairs = torch.tensor(
            list(_rows(((a, b) for a, b, _ in rows), row_of[first], row_of[second]))
        )
        ratings = np.array([rating for _, _, rating in rows])
        result[task] = Rated(pairs[:, 0], pairs[:, 1], ratings)
    return result


def _pairs(file: Path, threshold: float) -> Iterator[tuple[int, int]]:
    """Yield every pair rated at least ``threshold``."""
    return ((first, second) for first, second, rating in _ratings(file) if rating >= threshold)


def _ratings(file: Path) -> Iterator[tuple[int, int, float]]:
    """Yield the numbers in the first two columns of every row, and its rating."""
    try:
        with TextIOWrapper(open_plain(file), "utf-8", newline="") as lines:
            reader = csv.reader(lines)
            columns = next(reader, [])
            if len(columns) < 3 or columns[2] != "agg_score":
                raise DatasetError(
                    f"{file}: its columns are {columns!r:.80}, without agg_score in third place; "
                    "give the aggregated ratings, not the raw ones"
                )
            row = None
            for row in reader:
                yield rated_number(row[0]), rated_number(row[1]), _finite(row[2])
            if row is None:
                raise DatasetError(f"{file}: rates no pair; download it again")
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read ({error.strerror}); give the folder of CxC's CSV files"
        ) from error
    except (IndexError, ValueError, csv.Error) as error:
        raise DatasetError(f"{file}: is damaged ({error}); download it again") from error


def _finite(text: str) -> float:
    """Return the number that ``text`` is; ValueError if it is none, or infinite."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.20} is no rating")
    return value


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
