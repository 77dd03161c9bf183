"""Recalls of the evaluated split, both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vse_scale.report import figures
from vse_scale.report.data import Column, ReportData
from vse_scale.report.paired import paired_intervals
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, compared_table, figure, note
from vse_scale.retrieval.intervals import DRAWS, LEVEL, Interval, known_interval
from vse_scale.retrieval.metrics import DIRECTIONS, METRICS, Metric, percentages

_VISIBLE = 0.05  # percent; a smaller difference is not coloured
_EXPLAINED = (
    f"Small: the interval of {LEVEL} % of {DRAWS:,} bootstrap draws of the images, each with its "
    "captions."
)


class Recalls(Panel):
    """A table with a bar behind each percentage."""

    section = Section("recalls", "Recalls", 10)
    style = """\
.recalls { width: 100%; }
.recalls td { font-size: 1.1rem; }
.recalls .bar { width: 18%; padding-top: .45rem; }
.within { display: block; color: var(--soft); font-size: .72rem; font-weight: 400; }
.recalls .bar::after { content: ""; display: block; height: 4px; margin-top: .35rem;
  border-radius: 2px;
  background: linear-gradient(to right, var(--hue) var(--share), var(--rule) var(--share)); }
@media (max-width: 640px) {
  .recalls th, .recalls td { padding-right: .3rem; padding-left: .3rem; }
  .recalls th[scope=row] { white-space: normal; }
}
"""

    def render(self, data: ReportData) -> str:
        """Return the figures of both directions."""
        best = data.run.results.best
        if best is None:
            return absent("Not evaluated: no epoch is over yet, or there is no validation split.")
        head = "".join(f'<th scope="col">{m.label}</th>' for m in METRICS.values())
        known = best.intervals or data.found.intervals
        rows = []
        for key, direction in DIRECTIONS.items():
            cells = "".join(
                _cell(
                    metric,
                    figures.recorded(best, direction, metric),
                    known_interval(known, key, metric.name),
                )
                for metric in METRICS.values()
            )
            rows.append(f'<tr class="{key}"><th scope="row">{direction.label}</th>{cells}</tr>')
        ks = [str(metric.k) for metric in METRICS.values() if metric.k]
        explained = (
            "In percent: queries with a right answer among the first "
            f"{', '.join(ks[:-1])} or {ks[-1]}."
        )
        if known:
            explained += f" {_EXPLAINED}{_of_rsum(known)}"
        return (
            f'{note(explained)}<table class="figures recalls"><thead><tr>'
            f'<th scope="col">Direction</th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the figures of the runs and their difference."""
        runs = [column.run for column in columns]
        known = [run.results.best.intervals if run.results.best else {} for run in runs]
        paired, about = paired_intervals(columns)
        rows = [
            _compared(
                f"{metric.label}, {direction.label}",
                [figures.recorded(run.results.best, direction, metric) for run in runs],
                ".1f",
                better=metric.better,
                within=[known_interval(own, key, metric.name) for own in known],
                of_difference=known_interval(paired, key, metric.name),
            )
            for key, direction in DIRECTIONS.items()
            for metric in percentages()
        ]
        sums = [figures.recorded_rsum(run.results.best) for run in runs]
        rows.append(
            _compared(
                "RSUM", sums, ".1f", better="higher",
                within=[known_interval(own, "rsum") for own in known],
                of_difference=known_interval(paired, "rsum"),
            )
        )  # fmt: skip
        seconds = [figures.training_seconds(run) for run in runs]
        rows.append(_compared("training, seconds", seconds, ",.0f"))
        speeds = [figures.pairs_per_second(run) for run in runs]
        rows.append(_compared("pairs a second", speeds, ",.0f"))
        said = "".join(map(note, filter(None, (_EXPLAINED if any(known) else "", about))))
        return said + compared_table(columns, "".join(rows), last="difference")


def _cell(metric: Metric, value: float | None, within: Interval | None) -> str:
    said = figures.text(metric, value) + _within(within)
    if value is None or metric.unit != "percent":
        return f"<td>{said}</td>"
    return f'<td class="bar" style="--share:{value:.2f}%">{said}</td>'


def _of_rsum(known: Mapping[str, Any]) -> str:
    found = known_interval(known, "rsum")
    return "" if found is None else f" That of RSUM: {found[0]:.1f} to {found[1]:.1f}."


def _within(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f'<small class="within">{interval[0]:.1f}–{interval[1]:.1f}</small>'


def _compared(
    name: str,
    values: Sequence[float | None],
    form: str,
    *,
    better: str = "",
    within: Sequence[Interval | None] | None = None,
    of_difference: Interval | None = None,
) -> str:
    """Return a row; ``better`` is "higher" or "lower", or empty for a value that is neither."""
    cells = "".join(
        f"<td>{figure(value, form)}{_within(interval)}</td>"
        for value, interval in zip(values, within or [None] * len(values), strict=True)
    )
    difference, style = "–", ""
    first, last = values[0], values[-1]
    if first is not None and last is not None:
        change = last - first
        difference = _signed(change, form)
        sure = of_difference is None or of_difference[0] > 0 or of_difference[1] < 0
        if better and sure and abs(change) >= _VISIBLE:
            style = ' class="better"' if (change > 0) == (better == "higher") else ' class="worse"'
    if of_difference is not None:
        ends = " to ".join(_signed(end, form) for end in of_difference)
        difference += f'<small class="within">{ends}</small>'
    return f'<tr><th scope="row">{escape(name)}</th>{cells}<td{style}>{difference}</td></tr>'


def _signed(value: float, form: str) -> str:
    return f"{value:+{form}}".replace("-", "−")


PANEL = Recalls()
