"""Embeddings saved by ``vse-scale embed``, of one model or an ensemble of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vse_scale.errors import DatasetError
from vse_scale.retrieval.encode import Embeddings
from vse_scale.retrieval.similarities import as_rows, open_array
from vse_shards.json_text import mapping, parse_json
from vse_shards.plain_files import open_plain


def open_embeddings(folder: Path) -> Embeddings:
    """Map the embeddings of a split in ``folder``: images, captions and the image of each caption.

    Raises:
        DatasetError: the folder is missing, damaged, or holds no split of a dataset.
    """
    rows = {}
    for side in ("images", "captions"):
        if not (folder / f"{side}.npy").is_file():
            raise DatasetError(
                f"{folder}: has no {side}.npy; give a folder that `vse-scale embed --data` finished"
            )
        rows[side] = open_array(folder / f"{side}.npy"), read_lines(folder / f"{side}.jsonl")
        array, lines = rows[side]
        if array.ndim != 2 or len(array) != len(lines):
            raise DatasetError(
                f"{folder}: {side}.npy has the shape {array.shape} and {side}.jsonl {len(lines)} "
                "lines; embed again"
            )
    images, captions = rows["images"], rows["captions"]
    widths = images[0].shape[1], captions[0].shape[1]
    if widths[0] != widths[1] or not widths[0]:
        raise DatasetError(
            f"{folder}: images.npy has rows of {widths[0]} numbers and captions.npy of "
            f"{widths[1]}; embed both sides again with one model"
        )
    try:
        rows_of = [_row(line["image"], len(images[0])) for line in captions[1]]
    except (KeyError, ValueError) as error:
        raise DatasetError(
            f"{folder}: captions.jsonl names no image of a caption ({error}); embed again"
        ) from error
    image_index = torch.tensor(rows_of, dtype=torch.int64)
    return Embeddings(
        images=as_rows(images[0]),
        captions=as_rows(captions[0]),
        caption_to_image=image_index,
        image_ids=tuple(line["id"] for line in images[1]),
        caption_ids=tuple(line["id"] for line in captions[1]),
    )


def ensemble(members: Sequence[tuple[Path, float]]) -> Embeddings:
    """Return embeddings whose inner products are the weighted sum of the members'.

    A sum of inner products is the inner product of the concatenated vectors, so an ensemble is
    ranked like a model, by any protocol and in tiles.

    Args:
        members: folders of saved embeddings of the same split, and a weight above 0 for each.

    Raises:
        DatasetError: a folder is missing or damaged, or holds another split than the first.
    """
    opened = [(path, weight, open_embeddings(path)) for path, weight in members]
    first_path, _, first = opened[0]
    for path, _, other in opened[1:]:
        for field in ("image_ids", "caption_ids"):
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs:
                pairs = enumerate(zip(ours, theirs, strict=False))
                shorter = min(len(ours), len(theirs))
                differing = next((row for row, (a, b) in pairs if a != b), shorter)
                raise DatasetError(
                    f"{path}: its {field.replace('_', ' ')} are not those of {first_path}, from "
                    f"number {differing} on; embed the same split with both models"
                )
    if len(opened) == 1:
        return first
    scaled = [(math.sqrt(weight), member) for _, weight, member in opened]
    return Embeddings(
        images=torch.cat([scale * member.images for scale, member in scaled], dim=1),
        captions=torch.cat([scale * member.captions for scale, member in scaled], dim=1),
        caption_to_image=first.caption_to_image,
        image_ids=first.image_ids,
        caption_ids=first.caption_ids,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a ``.jsonl`` file.

    Raises:
        DatasetError: it is missing or damaged.
    """
    try:
        with open_plain(path) as lines:
            return [checked_line(path, line) for line in lines]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # no regular file
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def checked_line(path: Path, line: bytes) -> dict[str, Any]:
    """Return the object of a line of ``path``.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        found = mapping(parse_json(line))
        if not isinstance(found.get("id"), int | str):
            raise ValueError(f"an id is {found.get('id')!r:.80}, neither a number nor a text")
    except ValueError as error:
        raise DatasetError(f"{path}: is damaged ({error}); embed again") from error
    return found


def _row(value: Any, rows: int) -> int:
    if not isinstance(value, int) or not 0 <= value < rows:
        raise ValueError(f"its image is {value!r:.80}, not a row below {rows}")
    return value
