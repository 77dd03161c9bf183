"""The settings that may change when a run goes on from a checkpoint.

A field says so itself, by `MAY_CHANGE` in its annotation: no value of it alters what the next step
computes from the state that a checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel

from vse_scale.bounds import MAY_CHANGE, ON_PURPOSE, Mark
from vse_scale.config.parts import OBJECTIVES
from vse_scale.errors import ConfigError


def changeable_keys(section: type, prefix: str = "", mark: Mark = MAY_CHANGE) -> Iterator[str]:
    """Yield the dotted keys of ``section`` that bear ``mark``, a marked section as one key.

    Args:
        section: a pydantic model or a dataclass; sections within it are walked too.
        prefix: of the keys, "" or ending in a dot.
        mark: `MAY_CHANGE`, or `ON_PURPOSE`.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    for name in _fields(section):
        if mark in getattr(hints[name], "__metadata__", ()):
            yield prefix + name
        else:
            for inner in _sections(hints[name]):
                yield from changeable_keys(inner, f"{prefix}{name}.", mark)


def changes(
    then: dict[str, Any], now: dict[str, Any], section: type, on_purpose: Sequence[str] = ()
) -> list[str]:
    """Say what differs between two dumped configurations and may not, a phrase for each key.

    Keys ``on_purpose`` may differ too.
    """
    free = (*changeable_keys(section), *on_purpose)
    return [
        f"{key} was {before!r:.80}, is {after!r:.80}"
        for key, (before, after) in differences(then, now).items()
        if not _within(key, free)
    ]


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values of each dotted key that differs between two dumped configurations."""
    # Nothing in a section is no setting: earlier releases wrote null there.
    old, new = (
        {key: None if value == {} else value for key, value in flat(one).items()}
        for one in (then, now)
    )
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def keys_on_purpose(overrides: Sequence[str], section: type) -> tuple[str, ...]:
    """Return the keys of ``overrides``, key=value, all of which a run may change on purpose.

    Raises:
        ConfigError: one may not; the message lists those that may.
    """
    allowed = (*changeable_keys(section), *_objectives(), *changeable_keys(section, "", ON_PURPOSE))
    keys = tuple(override.partition("=")[0].strip() for override in overrides)
    for key in keys:
        if not _within(key, allowed):
            listed = ", ".join([*changeable_keys(section, "", ON_PURPOSE), *_objectives()])
            raise ConfigError(
                f"--resume-with {key}: a run cannot change it; it may change {listed}, and give "
                "another run.dir to start anew with the rest"
            )
    return keys


def check_learned(keys: Sequence[str], objective: Any) -> None:
    """Refuse to change a number on purpose that the objective learns.

    Args:
        keys: that change on purpose.
        objective: the settings of the run's objective.

    Raises:
        ConfigError: one of them is where a learned number began, which the checkpoint holds.
    """
    for key in keys:
        section, *within, name = key.split(".")
        if section != "objective":
            continue
        settings = objective
        for part in within:
            settings = getattr(settings, part, None)
        flag = getattr(settings, "learned_if", {}).get(name)
        if flag is not None and getattr(settings, flag):
            raise ConfigError(
                f"--resume-with {key}: it is learned, and goes on from the checkpoint; take it out"
            )


def _objectives() -> list[str]:
    """Return the marked keys of the built-in objectives."""
    parts = (OBJECTIVES.find(name).Settings for name in OBJECTIVES.names())
    return [key for kind in parts for key in changeable_keys(kind, "objective.", ON_PURPOSE)]


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


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a dumped configuration by dotted key; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
