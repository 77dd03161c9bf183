"""The curves of a run: loss and RSUM by step, and the pooling weights by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from vse_scale.html.chart import Axis, Band, Line, Mark, line_chart, linear_axis, log_axis, number
from vse_scale.run.folder import RunFolder

# More points than a wide screen has pixels only make the file larger.
_MOST_POINTS = 1200
_OBJECTIVES = {"all": "all violating negatives (warm-up)", "hardest": "hardest negative"}


@dataclass(frozen=True)
class PoolingCurve:
    """The weights that GPO learned for one length, the largest value of a channel first."""

    side: str  # "image" or "text"
    weights: tuple[float, ...]


def loss_chart(run: RunFolder) -> str:
    """Return the loss by step, with phases and learning-rate drops."""
    steps = [record for record in run.steps if np.isfinite(record["loss"])]
    if not steps:
        return ""
    stretches = [
        (objective, list(records))
        for objective, records in groupby(steps, key=lambda record: record["objective"])
    ]
    losses = [float(record["loss"]) for record in steps]
    low, high = min(losses), max(losses)
    batch = run.setting("data.global_batch", "?")
    reduction = "mean" if run.setting("objective.reduction") == "mean" else "sum"
    label = f"{reduction} over {batch} pairs"
    # The warm-up sums over all violations and is larger by orders of magnitude.
    logarithmic = low > 0 and high / low > 10
    y = log_axis(f"{label}, log scale", low, high) if logarithmic else linear_axis(label, 0, high)
    lines = []
    for place, (_, records) in enumerate(stretches):
        xs, ys = _thinned([r["step"] for r in records], [r["loss"] for r in records])
        window = max(1, len(xs) // 25)
        lines.append(Line(xs, ys, "raw", "each step" if not place else ""))
        smooth = _running_mean(ys, window)
        lines.append(Line(xs, smooth, "loss", "running mean" if not place else ""))
    return line_chart(
        "Loss",
        f"Loss by step, from {number(losses[0])} at step {steps[0]['step']} to "
        f"{number(losses[-1])} at step {steps[-1]['step']}.",
        step_axis(run),
        y,
        lines,
        _phases(stretches),
        _drops(run.steps),
    )


def rsum_chart(run: RunFolder) -> str:
    """Return the validation RSUM by step, its best value named."""
    if not run.evaluations:
        return ""
    xs = [record["step"] for record in run.evaluations]
    ys = [float(record["rsum"]) for record in run.evaluations]
    best = int(np.argmax(ys))
    margin = max((max(ys) - min(ys)) * 0.08, 2.0)
    y = linear_axis(
        "sum of the six recalls, at most 600",
        max(0.0, min(ys) - margin),
        min(600.0, max(ys) + margin),
    )
    lines = [
        Line(xs, ys, "rsum", "validation", dots=True),
        Line([xs[best]], [ys[best]], "best", f"best, {ys[best]:.1f}", dots=True),
    ]
    return line_chart(
        "RSUM",
        f"RSUM of {len(ys)} validations, from {ys[0]:.1f} to {ys[-1]:.1f}; "
        f"the best is {ys[best]:.1f} at step {xs[best]}.",
        step_axis(run),
        y,
        lines,
        (),
        _drops(run.steps),
    )


def pooling_chart(curves: Sequence[PoolingCurve], side: str) -> str:
    """Return one side's pooling weights by position, against those of plain averaging."""
    own = sorted((c for c in curves if c.side == side), key=lambda curve: len(curve.weights))
    if not own:
        return ""
    title, unit = ("Images", "cells") if side == "image" else ("Captions", "tokens")
    longest = len(own[-1].weights)
    top = max(max(curve.weights) for curve in own)
    bottom = min(0.0, min(min(curve.weights) for curve in own))
    lines = [
        Line(
            range(1, len(curve.weights) + 1),
            curve.weights,
            f"{side} tone-{min(len(own) - 1 - place, 2)}",
            f"{len(curve.weights)} {unit}",
            dots=len(curve.weights) <= 40,
            filled=len(own) == 1,
        )
        for place, curve in enumerate(own)
    ]
    average = 1 / longest
    lines.append(Line([1, longest], [average] * 2, "average", f"plain average of {longest} {unit}"))
    half = np.cumsum(own[-1].weights) >= 0.5
    return line_chart(
        title,
        f"Pooling weights of {longest} {unit} by position: {own[-1].weights[0]:.3f} at the "
        f"largest value, {own[-1].weights[-1]:.3f} at the smallest; the first "
        f"{int(np.argmax(half)) + 1} positions hold half of the weight.",
        position_axis(longest),
        linear_axis("weight", bottom, top * 1.08),
        lines,
    )


def step_axis(run: RunFolder) -> Axis:
    """Loss and RSUM share this axis, so that what happened at one step stands at one place."""
    last = max(record["step"] for record in [*run.steps, *run.evaluations])
    return linear_axis("step", 0, max(last, 1))


def position_axis(length: int) -> Axis:
    """Return the axis of sorted positions, 1 to ``length``."""
    axis = linear_axis("position, largest value first", 1, max(length, 2))
    ticks = ((1.0, "1"), *(tick for tick in axis.ticks if tick[0] >= 2 and tick[0] % 1 == 0))
    return Axis(axis.label, axis.low, axis.high, ticks)


def _phases(stretches: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Band]:
    """Shade every stretch but the hardest-negative ones, which are the rule."""
    return [
        Band(records[0]["step"], records[-1]["step"], _OBJECTIVES.get(objective, objective))
        for objective, records in stretches
        if objective != "hardest"
    ]


def _drops(steps: Sequence[dict[str, Any]]) -> list[Mark]:
    """Mark the steps at which the heads' learning rate falls to half or less at once."""
    rates = [(record["step"], float(record["learning_rate"]["heads"])) for record in steps]
    return [
        Mark(step, f"learning rate × {after / before:.2g}")
        for (_, before), (step, after) in pairwise(rates)
        if before > 0 and after <= before / 2
    ]


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average runs of neighbours where there are more than ``_MOST_POINTS``."""
    size = -(-len(xs) // _MOST_POINTS)
    cuts = range(0, len(xs), size)
    mean_x = [float(np.mean(xs[cut : cut + size])) for cut in cuts]
    return mean_x, [float(np.mean(ys[cut : cut + size])) for cut in cuts]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to ``window`` neighbours on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first = np.maximum(places - window, 0)
    last = np.minimum(places + window + 1, len(values))
    return [float(mean) for mean in (total[last] - total[first]) / (last - first)]
