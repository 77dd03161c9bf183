"""The loss by step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from vse_scale.html.chart import Axis, Band, Line, line_chart, linear_axis, log_axis, number
from vse_scale.objective.base import Objective
from vse_scale.objective.registry import recorded_objective
from vse_scale.report.data import Column, ReportData
from vse_scale.report.panel import LEARNING, Panel
from vse_scale.report.pieces import absent, ends, learning_rate_drops, step_axis, thinned
from vse_scale.run.folder import RunRecords

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
        phases = _phases(run)
        if not phases:
            return absent("No step was recorded yet, so there is no loss curve.")
        lines = []
        for index, phase in enumerate(phases):
            xs, ys = thinned(phase.steps, phase.losses, _MOST_POINTS)
            smooth = _running_mean(ys, max(1, len(xs) // 25))
            lines.append(Line(xs, ys, "raw", "" if index else "each step"))
            lines.append(Line(xs, smooth, "loss", "" if index else "running mean"))
        objective = recorded_objective(run.config.get("objective"))
        pairs = run.setting("data.global_batch", "?")
        unit = objective.unit(pairs) if objective is not None else f"over {pairs} pairs"
        first, last = phases[0], phases[-1]
        return line_chart(
            "Loss",
            f"Loss by step, from {number(first.losses[0])} at step {first.steps[0]} to "
            f"{number(last.losses[-1])} at step {last.steps[-1]}.",
            step_axis([run]),
            _axis(unit, [end(phase.losses) for phase in phases for end in (min, max)]),
            lines,
            _bands(phases, objective),
            learning_rate_drops(run),
        )

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the losses of the runs in one chart."""
        lines = []
        for column in columns:
            phases = _phases(column.run)
            if phases:
                xs = list(chain.from_iterable(phase.steps for phase in phases))
                ys = list(chain.from_iterable(phase.losses for phase in phases))
                lines.append(Line(*thinned(xs, ys, _MOST_COMPARED), column.style, column.name))
        if not lines:
            return absent("No run recorded its loss.")
        return line_chart(
            "Loss",
            f"Loss by step. {ends(lines)}.",
            step_axis([column.run for column in columns]),
            _axis("loss", [value for line in lines for value in line.ys]),
            lines,
        )


@dataclass(frozen=True)
class _Phase:
    """Steps with a finite loss between two changes of the objective."""

    objective: str
    steps: array[int]
    losses: array[float]


def _phases(run: RunRecords) -> list[_Phase]:
    phases: list[_Phase] = []
    for record in run.steps:
        if math.isfinite(record.loss):
            if not phases or phases[-1].objective != record.objective:
                phases.append(_Phase(record.objective, array("q"), array("d")))
            phases[-1].steps.append(record.step)
            phases[-1].losses.append(record.loss)
    return phases


def _axis(label: str, losses: Sequence[float]) -> Axis:
    # A warm-up may sum over more negatives and be larger than the rest by orders of magnitude.
    low, high = min(losses), max(losses)
    if low > 0 and high / low > 10:
        return log_axis(f"{label}, log scale", low, high)
    return linear_axis(label, 0, high)


def _bands(phases: Sequence[_Phase], objective: Objective | None) -> list[Band]:
    """Shade every phase but the one that training ends in."""
    if objective is None:
        return []
    return [
        Band(phase.steps[0], phase.steps[-1], objective.phase_label(phase.objective))
        for phase in phases
        if phase.objective != objective.final_phase
    ]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to ``window`` neighbours on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    first = np.maximum(indices - window, 0)
    last = np.minimum(indices + window + 1, len(values))
    return [float(mean) for mean in (total[last] - total[first]) / (last - first)]


PANEL = Loss()
