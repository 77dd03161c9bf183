"""The frame that the pages of the report share: headline, sections of panels, styles, scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import groupby

from vse_scale.html.document import document
from vse_scale.report.panel import Panel, Section

Shown = tuple[Section, Panel, str]
"""A panel's section on this page, the panel, and its HTML."""


def page(
    title: str, headline: str, shown: Sequence[Shown], reload_seconds: int | None = None
) -> str:
    """Return a whole page of panels, in the order of their sections and then their own."""
    # A comparison puts some sections elsewhere, so the order of discovery is not enough.
    placed = sorted(shown, key=lambda part: (part[0].order, part[1].order))
    parts = [
        (section.id, section.title, _body(list(of_section)))
        for section, of_section in groupby(placed, key=lambda part: part[0])
    ]
    return document_of(
        title,
        headline,
        parts,
        style="".join(panel.style for _, panel, _ in placed),
        script="".join(panel.script for _, panel, _ in placed),
        reload_seconds=reload_seconds,
    )


def document_of(
    title: str,
    headline: str,
    parts: Sequence[tuple[str, str, str]],
    *,
    style: str = "",
    script: str = "",
    reload_seconds: int | None = None,
) -> str:
    """Return a page of sections, each its id, heading and HTML, with a list of its contents."""
    sections = "\n".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{html}</section>'
        for name, heading, html in parts
    )
    contents = "".join(
        f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in parts
    )
    shared = (files("vse_scale.html") / "chart.js").read_text("utf-8")
    shared += (files("vse_scale.report") / "tables.js").read_text("utf-8")
    return document(
        "vse_scale.report",
        "page.html",
        title,
        style=style,
        script=shared + script,
        reload_seconds=reload_seconds,
        headline=headline,
        contents=contents,
        sections=sections,
    )


def _body(parts: Sequence[Shown]) -> str:
    """Put charts that follow one another in a grid."""
    html = ""
    for is_chart, group in groupby(parts, key=lambda part: part[1].chart):
        joined = "".join(text for _, _, text in group)
        html += f'<div class="charts">{joined}</div>' if is_chart else joined
    return html
