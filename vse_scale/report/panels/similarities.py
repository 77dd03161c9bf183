"""Similarities in the training batches by step."""

from __future__ import annotations

import math
from array import array

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
        """Return a line for each similarity that two steps recorded; nothing without any."""
        lines = []
        for label, key, style in _CURVES:
            xs, ys = array("d"), array("d")
            for record in data.run.steps:
                if math.isfinite(value := record.statistics.get(key, math.nan)):
                    xs.append(record.step)
                    ys.append(value)
            if len(xs) > 1:
                lines.append(Line(*thinned(xs, ys, _MOST_POINTS), style, label))
        if not lines:
            return ""
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
