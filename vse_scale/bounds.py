"""Bounds and marks of settings, written in their types.

A model opens where pydantic is not installed, so its settings are plain dataclasses; pydantic reads
these bounds off the types wherever a configuration is checked. Without it they are only read by
people.
"""

from __future__ import annotations

from typing import Annotated

try:
    from annotated_types import Ge, Gt, Le
except ImportError:  # comes with pydantic
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Ge:  # type: ignore[no-redef]
        """At least ``ge``."""

        ge: float

    @dataclass(frozen=True)
    class Gt:  # type: ignore[no-redef]
        """Above ``gt``."""

        gt: float

    @dataclass(frozen=True)
    class Le:  # type: ignore[no-redef]
        """At most ``le``."""

        le: float


__all__ = [
    "MAY_CHANGE",
    "MOST_THREADS",
    "ON_PURPOSE",
    "Count",
    "Fraction",
    "Ge",
    "Gt",
    "Le",
    "Mark",
    "Positive",
]


class Mark:
    """A mark on a field, or on a section as a whole."""


MAY_CHANGE = Mark()
"""It may change when a run goes on, and alters nothing of what the next step computes."""

ON_PURPOSE = Mark()
"""It may change when a run goes on and is told so: steps from there on are computed with it."""

Fraction = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[float, Gt(0.0)]
Count = Annotated[int, Ge(1), Le(2**31 - 1)]
MOST_THREADS = 1024  # of a process that decode; at some ten thousand DALI aborts
