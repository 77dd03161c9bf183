"""COCO's ids as different sources write them."""

from __future__ import annotations

import re

from vse_scale.errors import DatasetError


def number(name: int | str) -> int:
    """Return COCO's own number: of 7, "7", "COCO_val2014_000000000007.jpg" and "x:sentid:7".

    Raises:
        DatasetError: there is no number in it.
    """
    try:
        return rated_number(name)
    except ValueError as error:
        raise DatasetError(f"{error}; evaluate a dataset with COCO's own ids") from None


def rated_number(name: int | str) -> int:
    """Return COCO's own number in a cell of a published file.

    Raises:
        ValueError: there is no number in it.
    """
    digits = re.findall(r"\d+", str(name))
    if not digits:
        raise ValueError(f"{name!r:.80} holds no COCO id")
    return int(digits[-1])
