"""The settings that may change when a run goes on from a checkpoint.

A field says so itself, by `MAY_CHANGE` in its annotation: no value of it alters what the next step
computes from the state that a checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel

from vse_scale.bounds import MAY_CHANGE


def changeable_keys(section: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of ``section`` that are marked, a marked section as one key.

    Args:
        section: a pydantic model or a dataclass; sections within it are walked too.
        prefix: of the keys, "" or ending in a dot.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    for name in _fields(section):
        if MAY_CHANGE in getattr(hints[name], "__metadata__", ()):
            yield prefix + name
        else:
            for inner in _sections(hints[name]):
                yield from changeable_keys(inner, f"{prefix}{name}.")


def changes(then: dict[str, Any], now: dict[str, Any], section: type) -> list[str]:
    """Say what differs between two dumped configurations and may not, a phrase for each key."""
    free = tuple(changeable_keys(section))
    old, new = _flat(then), _flat(now)
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _within(key, free)
    ]


def _within(key: str, marked: tuple[str, ...]) -> bool:
    return any(key == mark or key.startswith(f"{mark}.") for mark in marked)


def _fields(section: type) -> list[str]:
    if dataclasses.is_dataclass(section):
        return [field.name for field in dataclasses.fields(section)]
    return list(section.model_fields) if issubclass(section, BaseModel) else []


def _sections(hint: Any) -> Iterator[type]:
    """Yield the sections that a field's value may be, out of annotations and unions."""
    if typing.get_origin(hint) is Annotated:
        hint = hint.__origin__
    members = typing.get_args(hint)
    if isinstance(hint, type) and not members:
        if dataclasses.is_dataclass(hint) or issubclass(hint, BaseModel):
            yield hint
        return
    for member in members:
        yield from _sections(member)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
