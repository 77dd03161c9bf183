"""Checks of what a build records of its source, options and shards, for later commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vse_shards.json_text import MOST_EXACT, parse_json
from vse_shards.records import MAX_SAMPLES


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


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    """Return whether a value can be part of a file's name."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and "/" not in value
        and 0 < len(value) <= 200
    )


def is_problem(line: Any) -> bool:
    """Return whether a value is a line of ``rejects.jsonl``."""
    try:
        content = parse_json(line)
        return all(_text(content[key]) for key in ("source", "reason", "detail"))
    except (KeyError, TypeError, ValueError):
        return False


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
    "fingerprint": _text,
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
_YOUNGER = {"keep_exif", "carve", "prefix_ids"}  # options that are absent unless used
_ACCEPTED: dict[str, Callable[[Any], bool]] = {
    "max_rejects": lambda value: (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) in (int, float)
        and 0 <= value[0] <= 1
        and _count(value[1])
    ),
    "allow_missing": _flag,
    "allow_leaks": _flag,
}
SOURCE: dict[str, Callable[[Any], bool]] = {
    "rows": _counts,
    "appended": lambda value: isinstance(value, list) and all(map(_addition, value)),
}
SHARD: dict[str, Callable[[Any], bool]] = {
    "fingerprint": _text,
    "problems": lambda value: isinstance(value, list) and all(map(is_problem, value)),
    "digests": _texts("[0-9a-f]*"),
    "untouched": _count,
    "changes": _counts,
}


PLAN: dict[str, Callable[[Any], bool]] = {
    "id": _text,
    "name": _text,
    "read": _count,
    "build": lambda value: _fits(value, BUILD) and BUILD.keys() - _YOUNGER <= value.keys(),
    "source": lambda value: _fits(value, SOURCE),
    "options": lambda value: _fits(value, _ACCEPTED) and _ACCEPTED.keys() <= value.keys(),
    "libraries": lambda value: value is not None and _names(value),
    "notes": _texts("(?s:.*)"),
    "lists": lambda value: value is not None and _names(value),
}
PLANNED: dict[str, Callable[[Any], bool]] = {
    "split": _name,
    "stem": _name,
    "first_key": _count,
    "fingerprint": _text,
    "piece": lambda value: _text(value) and bool(re.fullmatch(r"rows-[0-9]{5,9}\.sqlite", value)),
    "first": _count,
    "rows": lambda value: _count(value, 0, MAX_SAMPLES),
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


def _fits(content: Any, tests: Mapping[str, Callable[[Any], bool]]) -> bool:
    try:
        checked(content, tests, "")
    except (TypeError, ValueError):
        return False
    return True
