"""The recalls of the validations by step."""

from __future__ import annotations

from vse_scale.html.chart import Line, line_chart, linear_axis
from vse_scale.report import figures
from vse_scale.report.data import ReportData
from vse_scale.report.panel import LEARNING, Panel
from vse_scale.report.pieces import MOST_DOTS, step_axis
from vse_scale.retrieval.metrics import DIRECTIONS, percentages


class RecallsOverTime(Panel):
    """A chart a direction, with a line for each K."""

    section = LEARNING
    order = 30
    chart = True

    def render(self, data: ReportData) -> str:
        """Return the charts; none with fewer than two validations."""
        run = data.run
        if len(run.evaluations) < 2:
            return ""
        charts = []
        for direction in DIRECTIONS.values():
            lines = []
            for tone, metric in enumerate(percentages()):
                points = [
                    (record.step, value)
                    for record in run.evaluations
                    if (value := figures.recorded(record, direction, metric)) is not None
                ]
                if points:
                    xs, ys = zip(*points, strict=True)
                    dots = len(xs) <= MOST_DOTS
                    style = f"{direction.query} tone-{tone}"
                    lines.append(Line(xs, ys, style, metric.label, dots=dots))
            if not lines:
                continue
            title = f"Recalls, {direction.label}"
            summary = (
                f"{title} over {len(run.evaluations)} validations; the best {lines[0].label} is "
                f"{max(lines[0].ys):.1f} percent."
            )
            axis = linear_axis("percent", 0, 100)
            charts.append(line_chart(title, summary, step_axis([run]), axis, lines))
        return "".join(charts)


PANEL = RecallsOverTime()
