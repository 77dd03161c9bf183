"""The frame that the pages of the report share: headline, sections of panels, styles, scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from vse_scale.html.document import document
from vse_scale.report.panel import Panel, Section

Shown = tuple[Section, Panel, str]
"""A panel's section on this page, the panel, and its HTML."""


def page(title: str, headline: str, shown: Sequence[Shown]) -> str:
    """Return a whole page of panels, in the order of their sections and then their own."""
    # A comparison puts some sections elsewhere, so the order of discovery is not enough.
    placed = sorted(shown, key=lambda part: (part[0].order, part[1].order))
    sections = "\n".join(
        f'<section id="{section.id}"><h2>{escape(section.title)}</h2>{_body(list(parts))}</section>'
        for section, parts in groupby(placed, key=lambda part: part[0])
    )
    return document(
        "vse_scale.report",
        "page.html",
        title,
        style="".join(panel.style for _, panel, _ in placed),
        script="".join(panel.script for _, panel, _ in placed),
        headline=headline,
        sections=sections,
    )


def _body(parts: Sequence[Shown]) -> str:
    """Put charts that follow one another in a grid."""
    html = ""
    for is_chart, group in groupby(parts, key=lambda part: part[1].chart):
        joined = "".join(text for _, _, text in group)
        html += f'<div class="charts">{joined}</div>' if is_chart else joined
    return html
