"""Panels of the report, and how they are found.

To add a panel, add a module to `vse_scale.report.panels` with an object ``PANEL``. It then stands
in every report, and in every comparison if it has a ``compare`` method.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar, Protocol, runtime_checkable

from vse_scale.report import panels
from vse_scale.report.data import Column, ReportData


@dataclass(frozen=True)
class Section:
    """A part of the page: the id of its element, its heading, and its rank, the lowest first."""

    id: str
    title: str
    order: int


# Several panels share this one; a section of a single panel is defined beside it.
LEARNING = Section("curves", "Learning", 20)


class Panel(ABC):
    """A part of a section.

    Attributes:
        section: the section that it belongs to.
        compared_section: the one it belongs to in a comparison, if another.
        order: its rank within the section, the lowest first.
        chart: whether it is a chart, to stand in a grid with the charts next to it.
        style: CSS that it needs beyond style.css.
        script: JavaScript that it needs, for the end of the page.
    """

    section: ClassVar[Section]
    compared_section: ClassVar[Section | None] = None
    order: ClassVar[int] = 0
    chart: ClassVar[bool] = False
    style: ClassVar[str] = ""
    script: ClassVar[str] = ""

    @abstractmethod
    def render(self, data: ReportData) -> str:
        """Return the panel of one run as HTML, or a sentence that names what the run lacks.

        Empty where another panel of the section has named it already.
        """


@runtime_checkable
class Comparable(Protocol):
    """A panel that also shows several runs side by side."""

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the panel of several runs as HTML."""
        ...


def discover() -> list[Panel]:
    """Return the ``PANEL`` of every module in the package `panels`, in the order of the page."""
    # Sorted by name first, so that panels of one order keep their places from run to run.
    names = sorted(module.name for module in pkgutil.iter_modules(panels.__path__))
    found: list[Panel] = [import_module(f"{panels.__name__}.{name}").PANEL for name in names]
    return sorted(found, key=lambda panel: (panel.section.order, panel.order))
