"""Similarities in the training batches by step."""

from __future__ import annotations

import numpy as np

from vse_scale.html.chart import Line, line_chart, linear_axis
from vse_scale.report.data import ReportData
from vse_scale.report.panel import LEARNING, Panel
from vse_scale.report.pieces import step_axis, thinned

_MOST_POINTS = 300
# Label, name of the objective's figure, class of style.css.
_CURVES = (
    ("right pairs", "positive_similarity", "positive"),
    ("hardest negatives", "hardest_similarity", "negative"),
)


class Similarities(Panel):
    """The batches' mean similarity of right pairs, and of the hardest negatives."""

    section = LEARNING
    order = 40
    chart = True

    def render(self, data: ReportData) -> str:
        """Return the chart; none with fewer than two steps that recorded them."""
        steps = [
            record
            for record in data.run.steps
            if all(np.isfinite(record.statistics.get(key, np.nan)) for _, key, _ in _CURVES)
        ]
        if len(steps) < 2:
            return ""
        xs = [record.step for record in steps]
        lines = [
            Line(*thinned(xs, [r.statistics[key] for r in steps], _MOST_POINTS), style, label)
            for label, key, style in _CURVES
        ]
        values = [value for line in lines for value in line.ys]
        last = ", ".join(f"{line.label} {line.ys[-1]:.2f}" for line in lines)
        return line_chart(
            "Similarities in training",
            f"Mean similarity by step; at the end {last}.",
            step_axis([data.run]),
            linear_axis("mean cosine in the batch", min(0.0, *values), max(1.0, *values)),
            lines,
        )


PANEL = Similarities()
