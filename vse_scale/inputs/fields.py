"""Plain values to frozen dataclasses, with errors that name the field.

A model folder opens without pydantic, so what is stored beside the weights is checked here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from vse_scale.errors import ModelError

Described = TypeVar("Described")


def from_fields(kind: type[Described], raw: Any, what: str) -> Described:
    """Build the dataclass ``kind`` from a JSON object; lists become tuples.

    Raises:
        ModelError: ``raw`` is no object, a field is unknown or missing, or ``kind`` refuses a
            value; ``what`` is what the message calls it.
    """
    if not isinstance(raw, dict):
        raise ModelError(f"{what}: is {raw!r:.80}, not fields by name")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in sorted(known.keys() - raw.keys()):
        if known[name].default is MISSING:
            raise ModelError(f"{what}: {name} is missing")
    for name, value in raw.items():
        if name not in known:
            raise ModelError(f"{what}: {name[:80]} is {value!r:.80}: no such field")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})


def check_fields(of: object, what: str, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Raise ModelError for the first field of ``of`` that does not fit.

    Args:
        of: a dataclass.
        what: what the message calls it.
        checks: name of a field, whether its value fits, and what to give instead.
    """
    for name, fits, wanted in checks:
        if not fits:
            raise ModelError(f"{what}: {name} is {getattr(of, name)!r:.80}: give {wanted}")


def is_count(value: Any) -> bool:
    """Whether ``value`` is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number, true and false not counted."""
    return isinstance(value, int | float) and not isinstance(value, bool)
