"""Checks of what a build records of its source, options and shards, for later commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vse_shards.json_text import MOST_EXACT


def _count(value: Any, least: int = 0, most: int = MOST_EXACT) -> bool:
    return type(value) is int and least <= value <= most


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_count, value.values()))


def _carving(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and type(value[1]) in (int, float)
        and 0 < value[1] < 100
    )


def _names(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(name, str) for name in value.values())
    )


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(pattern: str) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and all(isinstance(text, str) and re.fullmatch(pattern, text) for text in value)
    )


def _addition(value: Any) -> bool:
    return isinstance(value, dict) and all(
        test(value[key]) for key, test in _ADDITION.items() if key in value
    )


_ADDITION: dict[str, Callable[[Any], bool]] = {
    "rows": _counts,
    "shards": _counts,
    "fingerprint": lambda value: isinstance(value, str),
}
BUILD: dict[str, Callable[[Any], bool]] = {
    "max_side": lambda value: value is None or _count(value, 1),
    "quality": lambda value: _count(value, 1, 100),
    "keep_bytes": _flag,
    "keep_exif": _flag,
    "shard_samples": lambda value: _count(value, 1),
    "seed": lambda value: _count(value, 0, 2**64 - 1),
    "splits": _names,
    "carve": lambda value: isinstance(value, list) and all(map(_carving, value)),
    "prefix_ids": _flag,
}
SOURCE: dict[str, Callable[[Any], bool]] = {
    "rows": _counts,
    "appended": lambda value: isinstance(value, list) and all(map(_addition, value)),
}
SHARD: dict[str, Callable[[Any], bool]] = {
    "fingerprint": lambda value: isinstance(value, str),
    "problems": _texts("(?s:.*)"),
    "digests": _texts("[0-9a-f]*"),
    "untouched": _count,
    "changes": _counts,
}


def checked(content: Any, tests: Mapping[str, Callable[[Any], bool]], name: str) -> dict[str, Any]:
    """Return a mapping that was recorded; keys that are absent, or that no test knows, are left.

    Raises:
        TypeError: it is no mapping.
        ValueError: a value cannot have been recorded.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{name} is {content!r:.80}, not dict")
    for key, test in tests.items():
        if key in content and not test(content[key]):
            raise ValueError(f"{name}.{key} is {content[key]!r:.80}")
    return content
