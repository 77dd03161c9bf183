"""Panels of what validations and the machine recorded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from vse_scale.html.chart import Line, line_chart, linear_axis
from vse_scale.report.curves import position_axis, step_axis
from vse_scale.retrieval.separation import BINS
from vse_scale.run.folder import RunFolder

_GIGA = 1e9


def recall_charts(run: RunFolder) -> str:
    """Return R@1, R@5 and R@10 by step, a chart for each direction."""
    if len(run.evaluations) < 2:
        return ""
    xs = [record["step"] for record in run.evaluations]
    charts = []
    for way, title, style in (
        ("i2t", "Recalls, image to text", "image"),
        ("t2i", "Recalls, text to image", "text"),
    ):
        curves = {k: [float(r[way][f"r{k}"]) for r in run.evaluations] for k in (1, 5, 10)}
        lines = [
            Line(xs, ys, f"{style} tone-{tone}", f"R@{k}", dots=len(xs) <= 40)
            for tone, (k, ys) in enumerate(curves.items())
        ]
        best = max(curves[1])
        summary = f"{title} over {len(xs)} validations; the best R@1 is {best:.1f} percent."
        charts.append(
            line_chart(title, summary, step_axis(run), linear_axis("percent", 0, 100), lines)
        )
    return "".join(charts)


def similarity_chart(run: RunFolder) -> str:
    """Return the batches' mean similarities by step: right pairs, and hardest negatives."""
    named = {"right pairs": "positive_similarity", "hardest negatives": "hardest_similarity"}
    steps = [r for r in run.steps if all(np.isfinite(r.get(key, np.nan)) for key in named.values())]
    if len(steps) < 2:
        return ""
    size = -(-len(steps) // 300)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    xs = [float(np.mean([r["step"] for r in group])) for group in groups]
    curves = {
        name: [float(np.mean([r[key] for r in group])) for group in groups]
        for name, key in named.items()
    }
    values = [value for ys in curves.values() for value in ys]
    y = linear_axis("mean cosine in the batch", min(0.0, *values), max(1.0, *values))
    lines = [
        Line(xs, curves["right pairs"], "positive", "right pairs"),
        Line(xs, curves["hardest negatives"], "negative", "hardest negatives"),
    ]
    last = {name: ys[-1] for name, ys in curves.items()}
    summary = "Mean similarity by step; at the end " + ", ".join(
        f"{name} {value:.2f}" for name, value in last.items()
    )
    return line_chart("Similarities in training", f"{summary}.", step_axis(run), y, lines)


def separation_chart(histograms: dict[str, Any] | None) -> str:
    """Return how captions spread by similarity: with their image, and with the hardest other."""
    if not histograms or not sum(histograms["positive"]):
        return ""
    edges = np.linspace(-1, 1, BINS + 1)
    filled = [
        place
        for name in ("positive", "hardest_negative")
        for place, count in enumerate(histograms[name])
        if count
    ]
    first, last = max(min(filled) - 1, 0), min(max(filled) + 2, BINS)
    lines = []
    for name, style, label in (
        ("positive", "positive", "with its own image"),
        ("hardest_negative", "negative", "with the hardest other image"),
    ):
        counts = histograms[name]
        total = max(sum(counts), 1)
        share = [100 * count / total for count in counts[first:last]]
        # Steps: every bin is a level from edge to edge.
        xs = [float(edge) for edge in np.repeat(edges[first : last + 1], 2)[1:-1]]
        ys = [value for value in share for _ in (0, 1)]
        lines.append(Line(xs, ys, style, label, filled=True))
    top = max(max(line.ys) for line in lines)
    middle = {name: _median(histograms[name], edges) for name in ("positive", "hardest_negative")}
    return line_chart(
        "Right pairs and hardest negatives",
        f"Captions by similarity: the median is {middle['positive']:.2f} with the own image and "
        f"{middle['hardest_negative']:.2f} with the hardest other.",
        linear_axis("cosine similarity", float(edges[first]), float(edges[last])),
        linear_axis("percent of the captions", 0, top * 1.08),
        lines,
    )


def pooling_over_time(evaluations: Sequence[dict[str, Any]]) -> str:
    """Return the pooling weights of the first, a middle and the last validation, by side."""
    recorded = [record for record in evaluations if record.get("pooling")]
    if len(recorded) < 2:
        return ""
    places = sorted({0, len(recorded) // 2, len(recorded) - 1})
    charts = []
    for side, title in (("image", "Images, by epoch"), ("text", "Captions, by epoch")):
        rows = [
            (
                recorded[place]["pooling"][side],
                f"{side} tone-{tone}",
                f"epoch {recorded[place]['epoch'] + 1}",
            )
            for tone, place in zip(range(len(places) - 1, -1, -1), places, strict=True)
        ]
        charts.append(pooling_lines(title, rows))
    return "".join(charts)


def pooling_lines(title: str, rows: Sequence[tuple[Sequence[float], str, str]]) -> str:
    """Return a chart of pooling weights by position, each with its style and label."""
    longest = max(len(weights) for weights, _, _ in rows)
    values = [value for weights, _, _ in rows for value in weights]
    tops = ", ".join(f"{label} {weights[0]:.3f}" for weights, _, label in rows)
    return line_chart(
        title,
        f"Pooling weights by position; at the largest value: {tops}.",
        position_axis(longest),
        linear_axis("weight", min(0.0, *values), max(values) * 1.08),
        [Line(range(1, len(weights) + 1), weights, style, label) for weights, style, label in rows],
    )


def system_list(system: dict[str, Any]) -> str:
    """Return what the run ran on; nothing where it recorded nothing."""
    if not system:
        return ""
    gpus = [f"{gpu['name']}, {_gigabytes(gpu['memory_bytes'])}" for gpu in system.get("gpus", [])]
    facts = [
        ("processes", system.get("ranks")),
        ("GPUs", "; ".join(gpus) or "none"),
        ("processor", system.get("processor")),
        ("cores", system.get("cores")),
        ("threads per process", system.get("threads_per_rank")),
        ("memory", _gigabytes(system["memory_bytes"]) if "memory_bytes" in system else None),
        ("Linux", system.get("kernel")),
        ("Python", system.get("python")),
    ]
    return _facts("Machine", facts) + _facts("Versions", list(system.get("packages", {}).items()))


def _facts(title: str, facts: Sequence[tuple[str, Any]]) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts
        if value is not None
    )
    return f"<section><h3>{escape(title)}</h3><dl>{rows}</dl></section>" if rows else ""


def _gigabytes(size: float) -> str:
    return f"{size / _GIGA:.1f} GB"


def _median(counts: Sequence[int], edges: Any) -> float:
    total = np.cumsum(counts)
    place = int(np.searchsorted(total, total[-1] / 2))
    return float((edges[place] + edges[min(place + 1, len(edges) - 1)]) / 2)
