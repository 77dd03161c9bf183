"""The pooling weights by position: of the best model, and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vse_scale.html.chart import Axis, Line, line_chart, linear_axis
from vse_scale.report.data import Column, PoolingCurve, ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import MOST_DOTS, absent, chart_grid, note
from vse_scale.run.folder import RunRecords

_TITLES = {"image": "Images", "text": "Captions"}


class Pooling(Panel):
    """A chart a side against plain averaging, then the weights over time."""

    section = Section("pooling", "Pooling weights", 60)

    def render(self, data: ReportData) -> str:
        """Return the learned weights, and how they changed."""
        charts = [_learned(data.found.pooling, *side) for side in _TITLES.items()]
        charts += [_over_time(data.run, *side) for side in _TITLES.items()]
        if not any(charts):
            return absent("No model was at hand to read the pooling weights from.")
        explained = (
            "GPO sorts the values of every channel and weighs them by position. Weight at the left "
            "alone would be max pooling; the dashed line is the plain average."
        )
        return note(explained) + chart_grid("".join(charts))

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the weights at the last validation of the runs, a chart a side."""
        charts = []
        for side, title in _TITLES.items():
            rows = [
                (recorded[-1][1][side], column.style, column.name)
                for column in columns
                if (recorded := _recorded(column.run))
            ]
            if rows:
                charts.append(_lines(title, rows))
        if not charts:
            return absent("No run recorded its pooling weights.")
        return chart_grid("".join(charts))


def _learned(curves: Sequence[PoolingCurve], side: str, title: str) -> str:
    own = sorted((c for c in curves if c.side == side), key=lambda curve: len(curve.weights))
    if not own:
        return ""
    longest, unit = len(own[-1].weights), own[-1].unit
    top = max(max(curve.weights) for curve in own)
    bottom = min(0.0, min(min(curve.weights) for curve in own))
    lines = [
        Line(
            range(1, len(curve.weights) + 1),
            curve.weights,
            f"{side} tone-{min(len(own) - 1 - index, 2)}",
            f"{len(curve.weights)} {unit}",
            dots=len(curve.weights) <= MOST_DOTS,
            filled=len(own) == 1,
        )
        for index, curve in enumerate(own)
    ]
    average = 1 / longest
    lines.append(Line([1, longest], [average] * 2, "average", f"plain average of {longest} {unit}"))
    half = np.cumsum(own[-1].weights) >= 0.5
    return line_chart(
        title,
        f"Pooling weights of {longest} {unit} by position: {own[-1].weights[0]:.3f} at the "
        f"largest value, {own[-1].weights[-1]:.3f} at the smallest; the first "
        f"{int(np.argmax(half)) + 1} positions hold half of the weight.",
        _position_axis(longest),
        linear_axis("weight", bottom, top * 1.08),
        lines,
    )


def _over_time(run: RunRecords, side: str, title: str) -> str:
    """Return the weights of the first, a middle and the last validation."""
    recorded = _recorded(run)
    if len(recorded) < 2:
        return ""
    indices = sorted({0, len(recorded) // 2, len(recorded) - 1})
    rows = []
    # The newest is the darkest.
    for tone, index in zip(range(len(indices) - 1, -1, -1), indices, strict=True):
        epoch, weights = recorded[index]
        rows.append((weights[side], f"{side} tone-{tone}", f"epoch {epoch + 1}"))
    return _lines(f"{title}, by epoch", rows)


def _recorded(run: RunRecords) -> list[tuple[int, Mapping[str, Sequence[float]]]]:
    """Return the epoch and the weights by side of every validation that recorded them."""
    return [(r.epoch, r.pooling) for r in run.evaluations if r.pooling]


def _lines(title: str, rows: Sequence[tuple[Sequence[float], str, str]]) -> str:
    """Return a chart of weights by position, each with its style and label."""
    longest = max(len(weights) for weights, _, _ in rows)
    values = [value for weights, _, _ in rows for value in weights]
    tops = ", ".join(f"{label} {weights[0]:.3f}" for weights, _, label in rows)
    return line_chart(
        title,
        f"Pooling weights by position; at the largest value: {tops}.",
        _position_axis(longest),
        linear_axis("weight", min(0.0, *values), max(values) * 1.08),
        [Line(range(1, len(weights) + 1), weights, style, label) for weights, style, label in rows],
    )


def _position_axis(length: int) -> Axis:
    """Return the axis of sorted positions, 1 to ``length``."""
    axis = linear_axis("position, largest value first", 1, max(length, 2))
    ticks = ((1.0, "1"), *(tick for tick in axis.ticks if tick[0] >= 2 and tick[0] % 1 == 0))
    return Axis(axis.label, axis.low, axis.high, ticks)


PANEL = Pooling()
