"""Many runs on one page: figures, settings that differ, and means over seeds."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vse_scale.config.resume import flat
from vse_scale.console import duration
from vse_scale.errors import OutputError
from vse_scale.files import write_text
from vse_scale.report import figures, frame
from vse_scale.report.panels.settings import plain
from vse_scale.report.pieces import absent, note
from vse_scale.retrieval.metrics import DIRECTIONS, HEADLINE
from vse_scale.run.folder import RunFolder, RunRecords
from vse_shards.terminal import printable

_OWN = ("run.seed", "run.dir", "run.resume_with")  # settings in which repeats of a run differ
_MOST_SETTINGS = 12  # columns of settings
_DIGITS = 1  # after the point, of recalls and RSUM


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of runs in ``folder``, one or two levels below it, by name.

    Raises:
        OutputError: there is none.
    """
    below = [path for form in ("*", "*/*") for path in folder.glob(form)]
    found = sorted(path for path in below if RunFolder(path).config_file.is_file())
    if not found:
        raise OutputError(
            f"{folder}: holds no run, nor is it one (config.yaml is missing); give a run.dir, or a "
            "folder of them"
        )
    return found


def write_overview(paths: Sequence[Path], out: Path, title: str) -> Path:
    """Write the page of the runs in ``paths`` to ``out``; a damaged run is named on it.

    Raises:
        OutputError: none of them can be read.
    """
    runs, damaged = [], []
    for path in paths:
        try:
            runs.append(RunRecords.load(path))
        except OutputError as error:
            damaged.append(str(error))
    if not runs:
        raise OutputError(f"{paths[0]}: no run can be read; the first: {damaged[0]}")
    write_text(out, render(runs, damaged, out, title))
    return out


def render(runs: Sequence[RunRecords], damaged: Iterable[str], out: Path, title: str) -> str:
    """Return the page as HTML."""
    head = (
        '<div class="title"><p class="eyebrow">Image–text retrieval</p>'
        f"<h1>{escape(title)}</h1></div>"
    )
    notes = "".join(note(f"Left out: {printable(words)}") for words in damaged)
    parts = [("runs", "Runs", notes + _table(runs, out)), ("seeds", "Over seeds", _seeds(runs))]
    return frame.document_of(f"{title}: runs", head, parts)


def _settings(run: RunRecords) -> dict[str, Any]:
    return flat(run.config)


def _figures(run: RunRecords) -> list[tuple[str, float | None]]:
    best = run.results.best
    ways = [(f"{HEADLINE.label} {way.label}", figures.recorded(best, way, HEADLINE))
            for way in DIRECTIONS.values()]  # fmt: skip
    return [("RSUM", figures.recorded_rsum(best)), *ways]


def _differing(all_settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for own in all_settings for key in own if key != "run.dir")
    first = all_settings[0]
    return [key for key in keys if any(own.get(key) != first.get(key) for own in all_settings)]


def _table(runs: Sequence[RunRecords], out: Path) -> str:
    all_settings = [_settings(run) for run in runs]
    differing = _differing(all_settings)
    names = _names(runs)
    heads = ["run", *(label for label, _ in _figures(runs[0])), "steps", "time", "written"]
    rows = []
    for run, name, own in zip(runs, names, all_settings, strict=True):
        seconds = figures.training_seconds(run)
        written = run.folder.config_file
        stamp = written.stat().st_mtime if written.is_file() else 0.0
        cells = [_cell(_number(value), value) for _, value in _figures(run)]
        cells += [_cell(f"{len(run.steps):,}", len(run.steps)), _cell(duration(seconds), seconds)]
        cells.append(_cell(f"{datetime.fromtimestamp(stamp):%Y-%m-%d %H:%M}", stamp))
        cells += [f"<td>{escape(plain(own.get(key)))}</td>" for key in differing[:_MOST_SETTINGS]]
        rows.append(f'<tr><th scope="row">{_link(run, name, out)}</th>{"".join(cells)}</tr>')
    said = ""
    if len(differing) > _MOST_SETTINGS:
        said = note(f"{len(differing)} settings differ; the first {_MOST_SETTINGS} are shown.")
    return said + _sortable([*heads, *differing[:_MOST_SETTINGS]], rows)


def _seeds(runs: Sequence[RunRecords]) -> str:
    """Return mean and sample deviation of every group of runs that differ by their seed alone."""
    groups: dict[str, dict[str, RunRecords]] = {}
    for run in runs:
        if run.results.best is not None and run.config:
            own = {key: value for key, value in _settings(run).items() if key not in _OWN}
            # A run that was repeated with its seed is no further sample.
            of_settings = groups.setdefault(repr(sorted(own.items())), {})
            of_settings.setdefault(repr(run.setting("run.seed")), run)
    rows = []
    for by_seed in groups.values():
        group = list(by_seed.values())
        if len(group) < 2:
            continue
        columns = list(zip(*(_figures(run) for run in group), strict=True))
        cells = [_spread([value for _, value in column]) for column in columns]
        named = ", ".join(_names(group))
        rows.append(
            f'<tr><th scope="row">{escape(named)}</th>{_cell(str(len(group)), len(group))}'
            f"{''.join(cells)}</tr>"
        )
    if not rows:
        return absent("No two evaluated runs differ by run.seed alone.")
    heads = ["runs", "seeds", *(label for label, _ in _figures(runs[0]))]
    said = note(
        "Mean ± sample standard deviation of runs whose settings differ by run.seed alone; "
        "of several with one seed the first counts."
    )
    return said + _sortable(heads, rows)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return _cell("–", None)
    mean, deviation = statistics.mean(known), statistics.stdev(known)
    return _cell(f"{mean:.{_DIGITS}f} ± {deviation:.{_DIGITS}f}", mean)


def _names(runs: Sequence[RunRecords]) -> list[str]:
    """Return the runs' names; those that several share as paths."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.folder.path)
        for run, name in zip(runs, names, strict=True)
    ]


def _link(run: RunRecords, name: str, out: Path) -> str:
    """Return a run's name, linked to its report where it has one, from where the page lies."""
    report = run.folder.report_file
    if not report.is_file():
        return escape(name)
    address = quote(os.path.relpath(report.resolve(), out.resolve().parent))
    return f'<a href="{escape(address)}">{escape(name)}</a>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.{_DIGITS}f}"


def _cell(text: str, value: float | None) -> str:
    sorted_by = "" if value is None else f' data-value="{value:.10g}"'
    return f"<td{sorted_by}>{escape(text)}</td>"


def _sortable(heads: Sequence[str], rows: Sequence[str]) -> str:
    named = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        '<div class="wide" tabindex="0"><table class="figures sortable">'
        f"<thead><tr>{named}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
