"""The head of a page: the subject, and its key figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vse_scale.console import duration
from vse_scale.report import figures, names
from vse_scale.report.data import Column
from vse_scale.report.pieces import figure
from vse_scale.retrieval.metrics import DIRECTIONS, HEADLINE
from vse_scale.run.folder import RunRecords


def of_run(run: RunRecords) -> str:
    """Return the name of a run, its data and encoders, and its key figures."""
    dataset = run.setting("data.path")
    if isinstance(dataset, list):
        dataset = " + ".join(dataset)
    facts = [
        ("trained on", dataset),
        ("images by", names.image_tower(run)),
        ("text by", names.text_tower(run)),
    ]
    words = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts
        if value
    )
    score = '<p class="score none">not evaluated yet</p>'
    rsum = figures.recorded_rsum(run.results.best)
    if run.results.best is not None and rsum is not None:
        score = (
            f'<p class="score"><b>{rsum:.1f}</b>'
            f"<span>RSUM of {figures.HIGHEST_RSUM:.0f}"
            f"<br>on {escape(run.results.best.split or 'the evaluated split')}</span></p>"
        )
    return (
        f'<div class="title"><p class="eyebrow">Image–text retrieval</p><h1>{escape(run.name)}</h1>'
        f'<dl class="facts">{words}</dl></div>{score}{_strip(run)}'
    )


def of_comparison(columns: Sequence[Column]) -> str:
    """Return the names of the runs, each with its colour."""
    items = "".join(
        f'<li class="{column.style}"><i aria-hidden="true"></i>{escape(column.name)}</li>'
        for column in columns
    )
    return (
        '<div class="title"><p class="eyebrow">Image–text retrieval</p><h1>Two runs</h1>'
        f'<ul class="names">{items}</ul></div>'
    )


def _strip(run: RunRecords) -> str:
    """Return the row of key figures."""
    shown = []
    for direction in DIRECTIONS.values():
        value = figures.recorded(run.results.best, direction, HEADLINE)
        if value is not None:
            shown.append((f"{value:.1f} %", f"{HEADLINE.label}, {direction.label}"))
    if run.steps:
        epochs = run.steps[-1].epoch_fraction
        shown += [
            (f"{len(run.steps):,}", f"steps, {epochs:.3g} epochs"),
            (duration(figures.training_seconds(run)), "training time"),
            (figure(figures.pairs_per_second(run), ",.0f"), "pairs a second"),
        ]
    items = "".join(f"<li><b>{escape(a)}</b><span>{escape(b)}</span></li>" for a, b in shown)
    return f'<ul class="strip">{items}</ul>' if shown else ""
