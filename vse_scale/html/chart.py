"""Line charts as HTML and SVG that stay legible at any width.

The SVG holds shapes alone and scales to its box in both directions; its strokes keep their width.
Words and numbers are HTML, positioned in percent of the box, so that they keep their size on a
phone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Axis:
    """One axis: its label, the values at its ends, and ticks as (value, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def position(self, value: float) -> float:
        """Return the position of ``value`` in percent: 0 at the low end, 100 at the high end."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.log(max(value, self.low))  # nothing else stands for zero and below
        else:
            low, high = self.low, self.high
        return 100.0 * min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        xs: its points, in the units of the axes.
        ys: as many values.
        style: a class of style.css.
        label: its name in the legend; empty leaves it out.
        dots: whether each point is a dot.
        filled: whether the area below is shaded.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    style: str
    label: str = ""
    dots: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Band:
    """A shaded range of the x axis."""

    start: float
    stop: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A dashed vertical line."""

    x: float
    label: str


def linear_axis(label: str, low: float, high: float) -> Axis:
    """Return an axis over [low, high] with four to eight round ticks; [0, 1] in place of none."""
    if not math.isfinite(high - low):  # of a run that diverged, or of a damaged record
        low, high = 0.0, 1.0
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in (1, 2, 2.5, 5, 10) if unit * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [index * step for index in range(first, last + 1)]
    return Axis(label, low, high, tuple((value, number(value)) for value in values))


def log_axis(label: str, low: float, high: float) -> Axis:
    """Return a logarithmic axis over [low, high], both positive, with ticks at 1, 2 and 5."""
    low, high = low / 1.15, high * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    values = [digit * 10.0**power for power in powers for digit in digits]
    ticks = tuple((value, number(value)) for value in values if low <= value <= high)
    return Axis(label, low, high, ticks, log=True)


def number(value: float) -> str:
    """Return ``value`` with about four digits, short enough for a tick: 0.25, 1,500, 250k, 2.5M."""
    if value == 0:
        return "0"
    if abs(value) >= 100_000:
        size, unit = next(
            (size, unit)
            for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
            if abs(value) >= size
        )
        return f"{value / size:.4g}{unit}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def line_chart(
    title: str,
    summary: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
) -> str:
    """Return a figure.

    Args:
        title: its heading.
        summary: the figure in words, for readers who cannot see it.
        x: the horizontal axis.
        y: the vertical axis.
        lines: the curves, the first below the others.
        bands: shaded ranges behind them.
        marks: vertical lines behind them.
    """
    shapes = [_band(band, x) for band in bands]
    shapes += [_rule("grid", 0, 100, level, level) for level in _levels(y)]
    shapes += [_rule("mark", at, at, 0, 100) for at in (x.position(m.x) for m in marks)]
    shapes += [shape for place, line in enumerate(lines) for shape in _curve(line, place, x, y)]
    words = [
        f'<span class="ytick" style="top:{100 - y.position(value):.2f}%">{escape(text)}</span>'
        for value, text in y.ticks
    ] + [
        f'<span class="xtick" style="left:{x.position(value):.2f}%">{escape(text)}</span>'
        for value, text in x.ticks
    ]
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>'
        f'<span class="axis-label">{escape(y.label)}</span></figcaption>'
        f'<div class="plot" role="img" aria-label="{escape(summary)}" data-name="{escape(x.label)}"'
        f' data-x="{_ends(x)}" data-y="{_ends(y)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(shapes)}</svg>{''.join(words)}</div>"
        f'<span class="axis-label x">{escape(x.label)}</span>'
        f"{_legend(lines, bands, marks)}</figure>"
    )


def _ends(axis: Axis) -> str:
    """Return the values at an axis' ends for the script, and whether they are logarithmic."""
    return json.dumps([float(f"{axis.low:.8g}"), float(f"{axis.high:.8g}"), axis.log])


def _levels(axis: Axis) -> list[float]:
    return [100 - axis.position(value) for value, _ in axis.ticks]


def _rule(style: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<path class="{style}" d="M{x1:.2f} {y1:.2f}L{x2:.2f} {y2:.2f}"/>'


def _band(band: Band, x: Axis) -> str:
    start, stop = x.position(band.start), x.position(band.stop)
    return f'<rect class="band" x="{start:.2f}" y="0" width="{stop - start:.2f}" height="100"/>'


def _curve(line: Line, place: int, x: Axis, y: Axis) -> list[str]:
    points = [
        f"{x.position(a):.2f} {100 - y.position(b):.2f}"
        for a, b in zip(line.xs, line.ys, strict=True)
    ]
    shapes = []
    own = f'data-line="{place}"'
    label = f' data-label="{escape(line.label)}"' if line.label else ""
    if line.filled:
        start, stop = x.position(line.xs[0]), x.position(line.xs[-1])
        outline = f"M{start:.2f} 100L{'L'.join(points)}L{stop:.2f} 100Z"
        shapes.append(f'<path class="area {line.style}" d="{outline}" {own}/>')
    shapes.append(f'<path class="line {line.style}" d="M{"L".join(points)}" {own}{label}/>')
    if line.dots:
        # A stroke of no length with round ends stays round when the SVG scales.
        dots = "".join(f"M{point}h0" for point in points)
        shapes.append(f'<path class="dots {line.style}" d="{dots}" {own}/>')
    return shapes


def _legend(lines: Sequence[Line], bands: Sequence[Band], marks: Sequence[Mark]) -> str:
    entries = [
        (f' data-line="{place}"', f"key-line {line.style}", line.label)
        for place, line in enumerate(lines)
        if line.label
    ]
    entries += [("", "key-band", band.label) for band in bands]
    # Several marks of one kind need one entry.
    entries += [("", "key-mark", label) for label in dict.fromkeys(mark.label for mark in marks)]
    if not entries:
        return ""
    items = "".join(
        f'<li{own}><i class="{style}" aria-hidden="true"></i>{escape(label)}</li>'
        for own, style, label in entries
    )
    return f'<ul class="legend">{items}</ul>'
