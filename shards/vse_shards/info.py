"""Statistics of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vse_shards.errors import DatasetError
from vse_shards.index import Index, read_index
from vse_shards.json_text import mapping, parse_json
from vse_shards.manifest import REJECTS_NAME, Manifest, Split
from vse_shards.plain_files import open_plain
from vse_shards.progress import Progress

_QUANTILES = (0, 5, 50, 95, 100)


def describe(folder: Path) -> dict[str, Any]:
    """Return splits, images, captions, their lengths, image sizes, bytes, and rejects by reason.

    Lengths are in words, sizes in pixels; both as minimum, 5%, median, 95% and maximum.

    Raises:
        DatasetError: there is no dataset, or it is incomplete.
    """
    manifest = Manifest.load(folder)
    manifest.check(folder)
    return {
        "folder": str(folder),
        "fingerprint": manifest.fingerprint,
        "splits": {name: _describe(folder, split) for name, split in manifest.splits.items()},
        "rejects": dict(_reasons(folder / REJECTS_NAME)),
        "build": dict(manifest.build),
        "source": dict(manifest.source),
    }


def descriptions(folder: Path, split: Split) -> Iterator[dict[str, Any]]:
    """Yield the description of every sample of a split, in order."""
    for shard in split.shards:
        index = read_index(folder / shard.index_name)
        with open_plain(folder / shard.name) as file:
            for row in range(len(index)):
                yield read_description(file, folder / shard.name, index, row)


def read_description(file: BinaryIO, path: Path, index: Index, row: int) -> dict[str, Any]:
    """Read the JSON member of one sample of an open tar; ``path`` is named in errors.

    Raises:
        DatasetError: the member is missing, or not JSON.
    """
    offset, size = index.place(row, "json")
    try:
        if size < 0:
            raise ValueError("it is missing")
        file.seek(offset)
        return parse_description(file.read(size))
    except ValueError as error:
        raise DatasetError(
            f"{path}: {index.keys[row]}.json cannot be read: {error}; run vse-shards verify"
        ) from None


def parse_description(text: bytes) -> dict[str, Any]:
    """Return the JSON member of a sample.

    Raises:
        ValueError: it is not what a build writes.
    """
    content = mapping(parse_json(text))
    captions = content.get("captions")
    if not isinstance(captions, list) or not all(
        isinstance(one, dict) and isinstance(one.get("text"), str) and _is_id(one.get("id"))
        for one in captions
    ):
        raise ValueError("its captions are no list of ids and texts")
    if not _is_id(content.get("image_id")):
        raise ValueError("its image_id is neither a number nor a text")
    if not all(
        side in content and (content[side] is None or type(content[side]) is int)
        for side in ("width", "height")
    ):
        raise ValueError("its width and height are no numbers")
    return content


def _is_id(value: object) -> bool:
    return isinstance(value, str) or type(value) is int


def _describe(folder: Path, split: Split) -> dict[str, Any]:
    words, widths, heights = [], [], []
    without_image = 0
    with Progress("reading descriptions", split.images, "images") as progress:
        for number, description in enumerate(descriptions(folder, split), start=1):
            words += [len(caption["text"].split()) for caption in description["captions"]]
            if description["width"] is None:
                without_image += 1
            else:
                widths.append(description["width"])
                heights.append(description["height"])
            progress.update(number)
    counts = np.concatenate([shard.captions_per_sample() for shard in split.shards])
    return {
        "images": split.images,
        "captions": split.pairs,
        "shards": len(split.shards),
        "bytes": sum(shard.bytes for shard in split.shards),
        "captions_per_image": {str(k): n for k, n in sorted(Counter(counts.tolist()).items())},
        "caption_words": _quantiles(words),
        "width": _quantiles(widths),
        "height": _quantiles(heights),
        "regions_only": without_image,
    }


def _quantiles(values: list[int]) -> list[int] | None:
    if not values:
        return None
    # "nearest" returns a value that occurs, not an interpolated one.
    return [int(v) for v in np.percentile(values, _QUANTILES, method="nearest")]


def _reasons(path: Path) -> Counter[str]:
    try:
        with TextIOWrapper(open_plain(path), "utf-8") as lines:
            return Counter(str(mapping(parse_json(line))["reason"]) for line in lines)
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}; build the dataset again") from None
