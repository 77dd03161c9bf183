"""Figures of every validation."""

from __future__ import annotations

from vse_scale.report import figures
from vse_scale.report.data import ReportData
from vse_scale.report.panel import LEARNING, Panel
from vse_scale.report.pieces import figure
from vse_scale.retrieval.metrics import DIRECTIONS, percentages


class Validations(Panel):
    """A table with a row a validation, folded away."""

    section = LEARNING
    order = 50

    def render(self, data: ReportData) -> str:
        """Return the table; none without validations."""
        evaluations = data.run.evaluations
        if not evaluations:
            return ""
        shown = [(d, metric) for d in DIRECTIONS.values() for metric in percentages()]
        head = "".join(
            f'<th scope="col">{direction.short} {metric.label}</th>' for direction, metric in shown
        )
        rows = ""
        for record in evaluations:
            values = [figures.recorded(record, *column) for column in shown]
            values.append(figures.recorded_rsum(record))
            cells = "".join(f"<td>{figure(value, '.1f')}</td>" for value in values)
            rows += f'<tr><th scope="row">{record.step:,}</th>{cells}</tr>'
        return (
            f"<details><summary>Every validation ({len(evaluations)})</summary>"
            '<div class="wide" tabindex="0"><table class="figures"><thead><tr>'
            f'<th scope="col">Step</th>{head}<th scope="col">RSUM</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
            "</details>"
        )


PANEL = Validations()
