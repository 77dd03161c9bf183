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


__all__ = ["MAY_CHANGE", "Count", "Fraction", "Ge", "Gt", "Le", "MayChange", "Positive"]


class MayChange:
    """The mark on a field, or on a section as a whole, that may change when a run goes on."""


MAY_CHANGE = MayChange()

Fraction = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[float, Gt(0.0)]
Count = Annotated[int, Ge(1)]
