"""The configuration of a run, or the settings in which runs differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from vse_scale.config.resume import flat
from vse_scale.report.data import Column, ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, compared_table, definitions, note


class Settings(Panel):
    """Every setting, section by section."""

    section = Section("settings", "Settings", 90)
    # In a comparison they explain the figures, so they stand next to them.
    compared_section = Section("settings", "Settings that differ", 25)

    def render(self, data: ReportData) -> str:
        """Return the configuration of a run."""
        if not data.run.config:
            return absent("The run folder holds no config.yaml.")
        listed = "".join(
            definitions(section, [(key, plain(value)) for key, value in _of_section(values)])
            for section, values in data.run.config.items()
        )
        return f'<div class="settings">{listed}</div>'

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the settings that are not the same for all runs."""
        settings = [flat(column.run.config) for column in columns]
        # In the order of the runs' own files, each key once.
        keys = list(dict.fromkeys(key for own in settings for key in own))
        differing = [k for k in keys if any(own.get(k) != settings[0].get(k) for own in settings)]
        if not differing:
            return absent("All settings are equal.")
        rows = "".join(
            f'<tr><th scope="row">{_breakable(key)}</th>'
            + "".join(f"<td>{escape(plain(own.get(key)))}</td>" for own in settings)
            + "</tr>"
            for key in differing
        )
        said = note(f"{len(differing)} of {len(keys)} settings differ.")
        return said + compared_table(columns, rows, style="words")


def _breakable(key: str) -> str:
    """Return a key that a narrow screen breaks between its words."""
    return re.sub("([._])", r"\1<wbr>", escape(key))


def _of_section(values: Any) -> Iterable[tuple[str, Any]]:
    return (flat(values) if isinstance(values, dict) else {"value": values}).items()


def plain(value: Any) -> str:
    """Return a setting's value in words."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


PANEL = Settings()
