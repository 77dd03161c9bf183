"""HTML and chart pieces that several panels use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain, pairwise

import numpy as np

from vse_scale.html.chart import Axis, Line, Mark, linear_axis
from vse_scale.report.data import Column
from vse_scale.run.folder import RunRecords

# Classes of style.css: the colours of images and captions, and of the runs in a comparison.
SIDE_STYLES = ("image", "text")
MOST_DOTS = 40  # of a line; more of them would run into one another


def absent(sentence: str) -> str:
    """Return the sentence that stands in for something the run lacks."""
    return f'<p class="absent">{escape(sentence)}</p>'


def note(sentence: str) -> str:
    """Return a sentence of explanation."""
    return f'<p class="note">{escape(sentence)}</p>'


def chart_grid(charts: str) -> str:
    """Return charts side by side, as many in a row as the screen holds."""
    return f'<div class="charts">{charts}</div>'


def definitions(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a titled list of names and values."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs
    )
    return f"<section><h3>{escape(title)}</h3><dl>{rows}</dl></section>"


def compared_table(columns: Sequence[Column], rows: str, *, last: str = "", style: str = "") -> str:
    """Return a table with a column for each run.

    Args:
        columns: the runs.
        rows: the body as HTML.
        last: heading of a further column, if there is one.
        style: further CSS classes.
    """
    heads = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in columns)
    heads += f'<th scope="col">{escape(last)}</th>' if last else ""
    return (
        f'<table class="{" ".join(["figures compared", *style.split()])}"><thead><tr>'
        f"<td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def side_by_side(columns: Sequence[Column], parts: Sequence[str]) -> str:
    """Return one part a run under the runs' names."""
    return '<div class="pair">{}</div>'.format(
        "".join(
            f"<div><h3>{escape(column.name)}</h3>{part}</div>"
            for column, part in zip(columns, parts, strict=True)
        )
    )


def figure(value: float | None, form: str) -> str:
    """Return a number, or a dash for one that was not recorded."""
    return "–" if value is None else f"{value:{form}}"


def step_axis(runs: Sequence[RunRecords]) -> Axis:
    """Return the axis of training steps; charts of one page share it, so that steps line up."""
    # Steps and validations both: a run may have recorded either alone.
    trained = (record.step for run in runs for record in run.steps)
    validated = (record.step for run in runs for record in run.evaluations)
    return linear_axis("step", 0, max(chain(trained, validated), default=1) or 1)


def thinned(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Average runs of neighbours, so that at most ``most`` points are left."""
    size = max(1, -(-len(xs) // most))
    cuts = range(0, len(xs), size)
    mean_x = [float(np.mean(xs[cut : cut + size])) for cut in cuts]
    return mean_x, [float(np.mean(ys[cut : cut + size])) for cut in cuts]


def ends(lines: Sequence[Line]) -> str:
    """Return the first and last value of each line in words."""
    return "; ".join(f"{line.label}: from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines)


def learning_rate_drops(run: RunRecords) -> list[Mark]:
    """Mark the steps at which the heads' learning rate falls to half or less at once."""
    rates = ((record.step, record.learning_rate.get("heads", 0.0)) for record in run.steps)
    return [
        Mark(step, f"learning rate × {after / before:.2g}")
        for (_, before), (step, after) in pairwise(rates)
        if before > 0 and after <= before / 2
    ]
