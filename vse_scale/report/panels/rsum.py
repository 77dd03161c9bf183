"""The RSUM of the validations by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vse_scale.html.chart import Axis, Line, line_chart, linear_axis
from vse_scale.report import figures
from vse_scale.report.data import Column, ReportData
from vse_scale.report.panel import LEARNING, Panel
from vse_scale.report.pieces import MOST_DOTS, absent, ends, learning_rate_drops, step_axis
from vse_scale.run.folder import RunRecords


class Rsum(Panel):
    """The sum of the recalls, its best value named."""

    section = LEARNING
    order = 20
    chart = True

    def render(self, data: ReportData) -> str:
        """Return the RSUM of a run."""
        run = data.run
        xs, ys = _points(run)
        if not xs:
            return absent("No validation was recorded, so there is no RSUM curve.")
        best = int(np.argmax(ys))
        lines = [
            Line(xs, ys, "rsum", "validation", dots=True),
            Line([xs[best]], [ys[best]], "best", f"best, {ys[best]:.1f}", dots=True),
        ]
        return line_chart(
            "RSUM",
            f"RSUM of {len(ys)} validations, from {ys[0]:.1f} to {ys[-1]:.1f}; "
            f"the best is {ys[best]:.1f} at step {xs[best]}.",
            step_axis([run]),
            _axis(ys),
            lines,
            (),
            learning_rate_drops(run),
        )

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the RSUM of the runs in one chart."""
        lines = []
        for column in columns:
            xs, ys = _points(column.run)
            if xs:
                dots = len(xs) <= MOST_DOTS
                lines.append(Line(xs, ys, column.style, column.name, dots=dots))
        if not lines:
            return absent("No run recorded a validation.")
        axis = _axis([value for line in lines for value in line.ys])
        steps = step_axis([column.run for column in columns])
        return line_chart("RSUM", f"RSUM by step. {ends(lines)}.", steps, axis, lines)


def _points(run: RunRecords) -> tuple[list[int], list[float]]:
    recorded = [r for r in run.evaluations if figures.recorded_rsum(r) is not None]
    return [record.step for record in recorded], [record.rsum for record in recorded]


def _axis(values: Sequence[float]) -> Axis:
    # Room below and above, so that a flat curve does not lie on the frame.
    margin = max((max(values) - min(values)) * 0.08, 2.0)
    return linear_axis(
        f"sum of {figures.RSUM_TERMS} recalls, at most {figures.HIGHEST_RSUM:.0f}",
        max(0.0, min(values) - margin),
        min(figures.HIGHEST_RSUM, max(values) + margin),
    )


PANEL = Rsum()
