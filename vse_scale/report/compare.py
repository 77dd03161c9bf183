"""Runs side by side: one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vse_scale.files import write_text
from vse_scale.report import frame, headline
from vse_scale.report.data import Column
from vse_scale.report.panel import Comparable, discover
from vse_scale.report.pieces import SIDE_STYLES
from vse_scale.run.folder import RunRecords


def compare_runs(first: Path, second: Path, out: Path) -> Path:
    """Write the comparison of two runs to ``out``.

    Raises:
        OutputError: a run's folder is missing or damaged.
    """
    paths = (first, second)
    runs = [RunRecords.load(path) for path in paths]
    names = [run.name for run in runs]
    if names[0] == names[1]:  # folders of one name are told apart by their paths
        names = [str(path) for path in paths]
    write_text(out, render(list(map(Column, runs, names, SIDE_STYLES))))
    return out


def render(columns: Sequence[Column]) -> str:
    """Return the page as HTML, with the panels that have a side-by-side form."""
    return frame.page(
        " and ".join(column.name for column in columns),
        headline.of_comparison(columns),
        [
            (panel.compared_section or panel.section, panel, panel.compare(columns))
            for panel in discover()
            if isinstance(panel, Comparable)
        ],
    )
