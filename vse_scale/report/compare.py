"""Two runs side by side: one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vse_scale.html.chart import Line, line_chart, linear_axis, log_axis
from vse_scale.html.document import document, write_document
from vse_scale.report import sections, timing
from vse_scale.report.panels import pooling_lines, system_list
from vse_scale.run.folder import RunFolder

_STYLES = ("image", "text")
_MOST_POINTS = 400


def compare_runs(first: Path, second: Path, out: Path) -> Path:
    """Write the comparison of two runs to ``out``.

    Raises:
        OutputError: a run's folder is missing or damaged.
    """
    runs = RunFolder.load(first), RunFolder.load(second)
    names = _names(runs, (first, second))
    write_document(out, render(runs, names))
    return out


def render(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return the page as HTML."""
    return document(
        "vse_scale.report",
        "compare.html",
        f"{names[0]} and {names[1]}",
        headline=_headline(names),
        recalls=_recalls(runs, names),
        curves=f'<div class="charts">{_losses(runs, names)}{_rsums(runs, names)}</div>',
        pooling=_pooling(runs, names),
        time=_times(runs, names),
        settings=_settings(runs, names),
        system=_systems(runs, names),
    )


def _names(runs: Sequence[RunFolder], paths: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or where these are equal their paths."""
    if runs[0].name != runs[1].name:
        return [run.name for run in runs]
    return [str(path) for path in paths]


def _headline(names: Sequence[str]) -> str:
    items = "".join(
        f'<li class="{style}"><i aria-hidden="true"></i>{escape(name)}</li>'
        for style, name in zip(_STYLES, names, strict=True)
    )
    return (
        '<div class="title"><p class="eyebrow">Image–text retrieval</p><h1>Two runs</h1>'
        f'<ul class="names">{items}</ul></div>'
    )


def _recalls(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    rows = []
    for way, direction in (("i2t", "image to text"), ("t2i", "text to image")):
        for key, short in (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10")):
            values = [run.results.get(way, {}).get(key) for run in runs]
            rows.append(_compared(f"{short}, {direction}", values, ".1f"))
    rows.append(_compared("RSUM", [run.results.get("rsum") for run in runs], ".1f"))
    seconds = [sum(float(r["seconds"]["step"]) for r in run.steps) for run in runs]
    rows.append(_compared("training, seconds", seconds, ",.0f", judged=False))
    speeds = [
        float(np.median([r["pairs_per_second"] for r in run.steps])) if run.steps else None
        for run in runs
    ]
    rows.append(_compared("pairs a second", speeds, ",.0f", judged=False))
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<table class="figures compared"><thead><tr><th scope="col"></th>{heads}'
        f'<th scope="col">difference</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _compared(name: str, values: Sequence[Any], form: str, *, judged: bool = True) -> str:
    cells = "".join("<td>–</td>" if v is None else f"<td>{v:{form}}</td>" for v in values)
    difference = "–"
    style = ""
    if None not in values:
        change = values[1] - values[0]
        difference = f"{change:+{form}}".replace("-", "−")
        if judged and abs(change) >= 0.05:
            style = ' class="better"' if change > 0 else ' class="worse"'
    return f'<tr><th scope="row">{escape(name)}</th>{cells}<td{style}>{difference}</td></tr>'


def _losses(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    lines = []
    for run, name, style in zip(runs, names, _STYLES, strict=True):
        steps = [record for record in run.steps if np.isfinite(record["loss"])]
        if steps:
            size = -(-len(steps) // _MOST_POINTS)
            groups = [steps[start : start + size] for start in range(0, len(steps), size)]
            xs = [float(np.mean([r["step"] for r in group])) for group in groups]
            lines.append(
                Line(xs, [float(np.mean([r["loss"] for r in g])) for g in groups], style, name)
            )
    return _chart("Loss", "loss", lines, log=True)


def _rsums(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    lines = [
        Line(
            [record["step"] for record in run.evaluations],
            [float(record["rsum"]) for record in run.evaluations],
            style,
            name,
            dots=len(run.evaluations) <= 40,
        )
        for run, name, style in zip(runs, names, _STYLES, strict=True)
        if run.evaluations
    ]
    return _chart("RSUM", "sum of the six recalls", lines)


def _chart(title: str, label: str, lines: Sequence[Line], *, log: bool = False) -> str:
    if not lines:
        return f'<p class="absent">Neither run recorded what {escape(title)} needs.</p>'
    values = [float(value) for line in lines for value in line.ys]
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 10:
        y = log_axis(f"{label}, log scale", low, high)
    else:
        margin = max((high - low) * 0.08, 1e-3)
        y = linear_axis(label, max(0.0, low - margin), high + margin)
    last = max(float(line.xs[-1]) for line in lines)
    summary = "; ".join(
        f"{line.label}: from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines
    )
    return line_chart(
        title, f"{title} by step. {summary}.", linear_axis("step", 0, max(last, 1)), y, lines
    )


def _pooling(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    charts = []
    for side, title in (("image", "Images"), ("text", "Captions")):
        rows = []
        for run, name, style in zip(runs, names, _STYLES, strict=True):
            recorded = [record for record in run.evaluations if record.get("pooling")]
            if recorded:
                rows.append((recorded[-1]["pooling"][side], style, name))
        if rows:
            charts.append(pooling_lines(title, rows))
    if not charts:
        return '<p class="absent">Neither run recorded its pooling weights.</p>'
    return f'<div class="charts">{"".join(charts)}</div>'


def _times(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    parts = [
        f"<div><h3>{escape(name)}</h3>{timing.time_section(run.steps)}</div>"
        if run.steps
        else f'<div><h3>{escape(name)}</h3><p class="absent">No step was recorded yet.</p></div>'
        for run, name in zip(runs, names, strict=True)
    ]
    return f'<div class="pair">{"".join(parts)}</div>'


def _settings(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    flat = [dict(sections.flat_settings(run.config)) for run in runs]
    differing = [key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)]
    if not differing:
        return '<p class="absent">All settings are equal.</p>'
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{escape(sections.plain(own.get(key)))}</td>" for own in flat)
        + "</tr>"
        for key in differing
    )
    return (
        f'<p class="note">{len(differing)} of {len(flat[0] | flat[1])} settings differ.</p>'
        f'<table class="figures compared words"><thead><tr><th scope="col"></th>{heads}</tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _systems(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    if not any(run.system for run in runs):
        return '<p class="absent">Neither run recorded what it ran on.</p>'
    if runs[0].system == runs[1].system:
        return (
            '<p class="note">The same for both.</p>'
            f'<div class="settings">{system_list(runs[0].system)}</div>'
        )
    parts = "".join(
        f'<div><h3>{escape(name)}</h3><div class="settings">'
        f"{system_list(run.system) or 'Not recorded.'}</div></div>"
        for run, name in zip(runs, names, strict=True)
    )
    return f'<div class="pair">{parts}</div>'
