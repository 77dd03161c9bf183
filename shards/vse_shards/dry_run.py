"""First rows of a source as a build would store them; nothing is written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vse_shards.build import read_source
from vse_shards.images import Rejected, check_image
from vse_shards.options import BuildOptions
from vse_shards.rows import RowStore
from vse_shards.shard import read_image
from vse_shards.sources import Row, Source

READ = 1000  # rows, unless --limit says another number
SHOWN = 3  # rows of each split


@dataclass(frozen=True)
class DryRun:
    """Rows that a build would begin with.

    Attributes:
        read: number of rows read.
        splits: images of each split among them.
        rows: the first rows of each split: id, name of the picture, captions, and what becomes of
            the picture.
        notes: lines about the source, which were said while it was read.
    """

    read: int
    splits: dict[str, int]
    rows: list[dict[str, Any]]
    notes: tuple[str, ...]


def dry_run(source: Source, options: BuildOptions) -> DryRun:
    """Read the first rows of a source, and convert the first pictures of each split.

    Raises:
        SourceError: these rows yield no dataset.
    """
    options = replace(options, limit=options.limit or READ)
    with (
        tempfile.TemporaryDirectory() as folder,
        RowStore(Path(folder) / "rows") as store,
    ):
        notes = read_source(source, store, options, may_carve_none=True)  # of few
        splits = store.splits()
        rows = []
        for split in sorted(splits):
            for stored in store.fetch(store.numbers(split)[:SHOWN]):
                rows.append({"split": split, **_described(stored.row, options)})
        return DryRun(store.read, splits, rows, notes)


def _described(row: Row, options: BuildOptions) -> dict[str, Any]:
    return {
        "image_id": row.image_id,
        "image": row.name,
        "captions": [caption.text for caption in row.captions],
        "stored": _picture(row, options),
    }


def _picture(row: Row, options: BuildOptions) -> str:
    """Return the size of the picture to store, or the reason to reject it."""
    if row.image is None:
        return "region features"
    try:
        image = check_image(read_image(row.image), options.image)
    except Rejected as refusal:
        return f"rejected: {refusal.reason}: {refusal.detail}"
    how = "unchanged" if image.untouched else "encoded anew"
    return f"{image.width} x {image.height} pixels, {how}"
