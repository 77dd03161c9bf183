"""The time of a run by phase of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from vse_scale.data.staged import in_words, total
from vse_scale.report.data import Column, ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, side_by_side
from vse_scale.run.folder import RunRecords
from vse_scale.run.records import StepRecord

# In the order in which a step goes through them.
PHASES = {
    "data": "waiting for data",
    "forward": "forward",
    "objective": "objective",
    "communication": "communication",
    "backward": "backward",
    "optimizer": "optimizer",
    "other": "other",
}
_VISIBLE = 0.05  # percent of the time; a shorter phase is left out
_MOST_ROWS = 12


class Time(Panel):
    """A stacked bar of the whole run, one of each epoch, and the figures in a table."""

    section = Section("time", "Time by phase", 70)
    style = """\
:root {
  --data: #c2503f; --forward: #17636b; --objective: #d09a3c; --communication: #7d6a99;
  --backward: #6aa2a4; --optimizer: #8d97a3; --other: #cfcac0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --data: #df7667; --forward: #3f8f97; --objective: #d6a651; --communication: #9c88ba;
    --backward: #83bfc1; --optimizer: #7f8a96; --other: #4b4f52;
  }
}
.time { display: grid; grid-template-columns: 3fr 2fr; gap: 2rem 3rem; align-items: start; }
.stack { display: flex; flex: 1; gap: 2px; height: 9px; }
.stack i { flex: 0 1 0; min-width: 0; }
.bars li:first-child { margin-bottom: 1.1rem; }
.bars li:first-child .stack { height: 46px; }
.stack i:first-child { border-radius: 3px 0 0 3px; }
.stack i:last-child { border-radius: 0 3px 3px 0; }
.bars li { display: flex; align-items: center; gap: .8rem; margin-top: .4rem; }
.bars span { flex: 0 0 4.6rem; color: var(--soft); font-size: .8rem; line-height: 1; }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: .6em;
  border-radius: 3px; }
.phase-data { background: var(--data); }
.phase-forward { background: var(--forward); }
.phase-objective { background: var(--objective); }
.phase-communication { background: var(--communication); }
.phase-backward { background: var(--backward); }
.phase-optimizer { background: var(--optimizer); }
.phase-other { background: var(--other); }
.time table { width: 100%; }
.time td, .time th { padding-top: .4rem; padding-bottom: .4rem; }
.pair .time { grid-template-columns: 1fr; margin-top: .8rem; }
@media (max-width: 640px) {
  .time { grid-template-columns: 1fr; }
}
"""

    def render(self, data: ReportData) -> str:
        """Return the time of a run."""
        return _section(data.run)

    def compare(self, columns: Sequence[Column]) -> str:
        """Return the time of each run."""
        return side_by_side(columns, [_section(column.run) for column in columns])


@dataclass(frozen=True)
class TimeUse:
    """Seconds by phase over a number of steps, in the order of ``PHASES``; none is negative."""

    steps: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds in all phases."""
        return sum(self.seconds.values())

    def share(self, phase: str) -> float:
        """Return the share of ``phase`` in percent."""
        return 100.0 * self.seconds[phase] / self.total if self.total else 0.0


def time_use(steps: Iterable[StepRecord]) -> TimeUse:
    """Add up ``seconds`` of all steps; what no phase accounts for is "other"."""
    sums = _Sums()
    for record in steps:
        sums.add(record)
    return sums.use()


class _Sums:
    """Seconds of steps that are added one by one."""

    def __init__(self) -> None:
        self.steps, self.whole = 0, 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def add(self, record: StepRecord) -> None:
        self.steps += 1
        self.whole += record.seconds.get("step", 0.0)
        for phase in PHASES:
            self.seconds[phase] += max(record.seconds.get(phase, 0.0), 0.0)

    def use(self) -> TimeUse:
        other = max(self.whole - sum(self.seconds.values()), 0.0)
        return TimeUse(self.steps, {**self.seconds, "other": self.seconds["other"] + other})


def _section(run: RunRecords) -> str:
    if not run.steps:
        return absent("No step was recorded yet.")
    use = time_use(run.steps)
    phases = [phase for phase in PHASES if use.share(phase) >= _VISIBLE]
    rows = "".join(
        f'<tr><th scope="row"><i class="swatch phase-{phase}" aria-hidden="true"></i>'
        f"{escape(PHASES[phase])}</th><td>{use.share(phase):.1f} %</td>"
        f"<td>{1000 * use.seconds[phase] / use.steps:.1f}</td></tr>"
        for phase in phases
    )
    bars = "".join(
        f"<li><span>{escape(label)}</span>{_bar(part, phases)}</li>"
        for label, part in [("whole run", use), *_by_epoch(run.steps)]
    )
    return (
        f'<p class="lead">Of every step, {use.share("data"):.1f} % was spent waiting for data.'
        f"{_staging(run.steps)}</p>"
        f'<div class="time"><ul class="bars">{bars}</ul>'
        '<table class="figures"><thead><tr><th scope="col">Phase</th><th scope="col">Share</th>'
        f'<th scope="col">ms per step</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _staging(steps: Sequence[StepRecord]) -> str:
    """Return a sentence about remote shards; empty where the run had none."""
    staged = total(record.staging for record in steps)
    return f" Of remote shards the main rank's loader had {in_words(staged)}." if staged else ""


def _bar(use: TimeUse, phases: Sequence[str]) -> str:
    parts = "".join(
        f'<i class="phase-{phase}" style="flex-grow:{use.seconds[phase]:.6g}"></i>'
        for phase in phases
    )
    words = ", ".join(f"{PHASES[phase]} {use.share(phase):.1f} %" for phase in phases)
    return f'<div class="stack" role="img" aria-label="{escape(words)}">{parts}</div>'


def _by_epoch(steps: Sequence[StepRecord]) -> list[tuple[str, TimeUse]]:
    """Cut the run into its epochs, or into at most ``_MOST_ROWS`` stretches of several."""
    epochs = sum(1 for _ in groupby(steps, key=lambda record: record.epoch))
    size = -(-epochs // _MOST_ROWS)
    rows: list[tuple[int, int, _Sums]] = []  # first and last epoch
    for number, (epoch, records) in enumerate(groupby(steps, key=lambda record: record.epoch)):
        first, _, sums = rows.pop() if number % size else (epoch, epoch, _Sums())
        for record in records:
            sums.add(record)
        rows.append((first, epoch, sums))
    return [
        (f"epoch {first + 1}" if first == last else f"{first + 1}–{last + 1}", sums.use())
        for first, last, sums in rows
    ]


PANEL = Time()
