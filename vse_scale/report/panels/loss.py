"""The loss by step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from vse_scale.html.chart import Axis, Band, Line, line_chart, linear_axis, log_axis, number
from vse_scale.objective.base import Objective
from vse_scale.objective.registry import recorded_objective
from vse_scale.report.data import Column, ReportData
from vse_scale.report.panel import LEARNING, Panel
from vse_scale.report.pieces import absent, ends, learning_rate_drops, step_axis, thinned
from vse_scale.run.folder import RunRecords
from vse_scale.run.records import StepRecord

# More points than a wide screen has pixels only make the file larger.
_MOST_POINTS, _MOST_COMPARED = 1200, 400


class Loss(Panel):
    """The loss with the phases of the objective and the drops of the learning rate."""

    section = LEARNING
    order = 10
    chart = True

    def render(self, data: ReportData) -> str:
        """Return the loss of a run, and its running mean."""
        run = data.run
        steps = _finite(run)
        if not steps:
            return absent("No step was recorded yet, so there is no loss curve.")
        phases = [
            (phase, list(records))
            for phase, records in groupby(steps, key=lambda record: record.objective)
        ]
        lines = []
        for index, (_, records) in enumerate(phases):
            xs, ys = thinned([r.step for r in records], [r.loss for r in records], _MOST_POINTS)
            smooth = _running_mean(ys, max(1, len(xs) // 25))
            lines.append(Line(xs, ys, "raw", "" if index else "each step"))
            lines.append(Line(xs, smooth, "loss", "" if index else "running mean"))
        objective = recorded_objective(run.config.get("objective"))
        pairs = run.setting("data.global_batch", "?")
        unit = objective.unit(pairs) if objective is not None else f"over {pairs} pairs"
        losses = [record.loss for record in steps]
        return line_chart(
            "Loss",
            f"Loss by step, from {number(losses[0])} at step {steps[0].step} to "
            f"{number(losses[-1])} at step {steps[-1].step}.",
            step_axis([run]),
            _axis(unit, losses),
            lines,
            _bands(phases, objective),
            learning_rate_drops(run),
        )

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the losses of the runs in one chart."""
        lines = []
        for column in columns:
            steps = _finite(column.run)
            if steps:
                points = [r.step for r in steps], [r.loss for r in steps]
                lines.append(Line(*thinned(*points, _MOST_COMPARED), column.style, column.name))
        if not lines:
            return absent("No run recorded its loss.")
        return line_chart(
            "Loss",
            f"Loss by step. {ends(lines)}.",
            step_axis([column.run for column in columns]),
            _axis("loss", [value for line in lines for value in line.ys]),
            lines,
        )


def _finite(run: RunRecords) -> list[StepRecord]:
    return [record for record in run.steps if np.isfinite(record.loss)]


def _axis(label: str, losses: Sequence[float]) -> Axis:
    # A warm-up may sum over more negatives and be larger than the rest by orders of magnitude.
    low, high = min(losses), max(losses)
    if low > 0 and high / low > 10:
        return log_axis(f"{label}, log scale", low, high)
    return linear_axis(label, 0, high)


def _bands(
    phases: Sequence[tuple[str, list[StepRecord]]], objective: Objective | None
) -> list[Band]:
    """Shade every phase but the one that training ends in."""
    if objective is None:
        return []
    return [
        Band(records[0].step, records[-1].step, objective.phase_label(phase))
        for phase, records in phases
        if phase != objective.final_phase
    ]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to ``window`` neighbours on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    first = np.maximum(indices - window, 0)
    last = np.minimum(indices + window + 1, len(values))
    return [float(mean) for mean in (total[last] - total[first]) / (last - first)]


PANEL = Loss()
