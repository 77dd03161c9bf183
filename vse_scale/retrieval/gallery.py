"""A split that can be ranked, and the order of its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from vse_scale.data.shards import ImageRecord, ShardDataset
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.similarities import Similarities, open_similarities

Gallery: TypeAlias = Embeddings | Similarities


def source_records(dataset: ShardDataset) -> list[ImageRecord]:
    """Return the records of a split in the order of its source, which a build shuffles."""
    records = [dataset.record(image) for image in range(len(dataset))]  # read shard by shard
    return [records[image] for image in dataset.source_order()]


def source_ids(dataset: ShardDataset) -> list[int | str]:
    """Return the image ids of a split in the order of its source."""
    return [record.image_id for record in source_records(dataset)]


def similarities_of(dataset: ShardDataset, files: Sequence[tuple[Path, float]]) -> Similarities:
    """Map similarities of a split, rows and columns in the order of its source.

    Args:
        dataset: the split.
        files: ``.npy`` files of (I, C) floats, and a weight for each.

    Raises:
        DatasetError: a file is missing, damaged or of another shape.
    """
    records = source_records(dataset)
    image_index = [row for row, record in enumerate(records) for _ in record.captions]
    return open_similarities(
        files,
        [record.image_id for record in records],
        [caption.id for record in records for caption in record.captions],
        torch.tensor(image_index, dtype=torch.int64),
    )
