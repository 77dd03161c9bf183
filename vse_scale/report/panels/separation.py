"""Similarities of captions with their own image and with the hardest other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vse_scale.html.chart import Line, line_chart, linear_axis
from vse_scale.report import figures
from vse_scale.report.data import ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, chart_grid, note
from vse_scale.retrieval.separation import BINS

# Histogram, class of style.css, label.
_CURVES = (
    ("positive", "positive", "with its own image"),
    ("hardest_negative", "negative", "with the hardest other image"),
)


class Separation(Panel):
    """Two histograms: of the model at hand, or of the best validation that recorded them."""

    section = Section("separation", "Similarities of right and wrong pairs", 30)

    def render(self, data: ReportData) -> str:
        """Return both histograms in one chart."""
        histograms = data.found.similarities
        if histograms is None:
            recorded = [r for r in data.run.evaluations if _is_whole(r.similarities)]
            best = max(recorded, key=lambda r: figures.recorded_rsum(r) or -1.0, default=None)
            histograms = best.similarities if best else None
        if not histograms or not sum(histograms["positive"]):
            return absent(
                "No similarities were recorded, and no model was at hand to compute them."
            )
        explained = (
            "Each caption twice: by its similarity with its own image, and with the most similar "
            "other image. Where the two overlap, captions find the wrong picture."
        )
        return note(explained) + chart_grid(_chart(histograms))


def _is_whole(histograms: Mapping[str, Sequence[object]]) -> bool:
    """Return whether both histograms are there, each with as many counts as this release has."""
    return all(
        len(found := histograms.get(name, ())) == BINS
        and all(isinstance(count, int) and count >= 0 for count in found)
        for name, _, _ in _CURVES
    )


def _chart(histograms: Mapping[str, Sequence[int]]) -> str:
    edges = np.linspace(-1, 1, BINS + 1)
    filled = [
        index for name, _, _ in _CURVES for index, count in enumerate(histograms[name]) if count
    ]
    first, last = max(min(filled) - 1, 0), min(max(filled) + 2, BINS)
    lines = []
    for name, style, label in _CURVES:
        counts = histograms[name]
        total = max(sum(counts), 1)
        share = [100 * count / total for count in counts[first:last]]
        # Steps: every bin is a level from edge to edge.
        xs = [float(edge) for edge in np.repeat(edges[first : last + 1], 2)[1:-1]]
        ys = [value for value in share for _ in (0, 1)]
        lines.append(Line(xs, ys, style, label, filled=True))
    top = max(max(line.ys) for line in lines)
    own, other = (_median(histograms[name], edges) for name, _, _ in _CURVES)
    return line_chart(
        "Right pairs and hardest negatives",
        f"Captions by similarity: the median is {own:.2f} with the own image and "
        f"{other:.2f} with the hardest other.",
        linear_axis("cosine similarity", float(edges[first]), float(edges[last])),
        linear_axis("percent of the captions", 0, top * 1.08),
        lines,
    )


def _median(counts: Sequence[int], edges: NDArray[np.float64]) -> float:
    total = np.cumsum(counts)
    index = int(np.searchsorted(total, total[-1] / 2))
    return float((edges[index] + edges[min(index + 1, len(edges) - 1)]) / 2)


PANEL = Separation()
