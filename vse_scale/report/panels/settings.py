"""The configuration of a run, or the settings in which runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

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
            definitions(section, [(key, _plain(value)) for key, value in _flat(values)])
            for section, values in data.run.config.items()
        )
        return f'<div class="settings">{listed}</div>'

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the settings that are not the same for all runs."""
        flat = [dict(_flat(column.run.config)) for column in columns]
        # In the order of the runs' own files, each key once.
        keys = list(dict.fromkeys(key for own in flat for key in own))
        differing = [k for k in keys if any(own.get(k) != flat[0].get(k) for own in flat)]
        if not differing:
            return absent("All settings are equal.")
        rows = "".join(
            f'<tr><th scope="row">{escape(key)}</th>'
            + "".join(f"<td>{escape(_plain(own.get(key)))}</td>" for own in flat)
            + "</tr>"
            for key in differing
        )
        said = note(f"{len(differing)} of {len(keys)} settings differ.")
        return said + compared_table(columns, rows, style="words")


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return settings of all depths by their dotted names."""
    if not isinstance(values, dict):
        return [(prefix or "value", values)]
    pairs = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        nested = isinstance(value, dict) and value
        pairs += _flat(value, name) if nested else [(name, value)]
    return pairs


def _plain(value: Any) -> str:
    """Return a setting's value in words."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


PANEL = Settings()
