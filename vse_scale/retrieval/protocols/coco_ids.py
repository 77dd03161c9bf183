"""COCO's ids as different sources write them."""

from __future__ import annotations

import re

from vse_scale.errors import DatasetError


def number(name: int | str) -> int:
    """Return COCO's own number: of 7, "7", "COCO_val2014_000000000007.jpg" and "x:sentid:7".

    Raises:
        DatasetError: there is no number in it.
    """
    digits = re.findall(r"\d+", str(name))
    if not digits:
        raise DatasetError(f"{name!r} holds no COCO id; evaluate a dataset with COCO's own ids")
    return int(digits[-1])
