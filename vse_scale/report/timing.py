"""Where the time of a run went, by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

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
_MOST_ROWS = 12


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


def time_use(steps: Sequence[dict[str, Any]]) -> TimeUse:
    """Add up ``seconds`` of all steps; what no phase accounts for is "other"."""
    seconds = dict.fromkeys(PHASES, 0.0)
    for record in steps:
        for phase in PHASES:
            seconds[phase] += max(float(record["seconds"].get(phase, 0.0)), 0.0)
    whole = sum(float(record["seconds"]["step"]) for record in steps)
    seconds["other"] += max(whole - sum(seconds.values()), 0.0)
    return TimeUse(len(steps), seconds)


def time_section(steps: Sequence[dict[str, Any]]) -> str:
    """Return a stacked bar of the whole run, one of each epoch, and the figures in a table."""
    use = time_use(steps)
    # A phase under a twentieth of a percent is no phase that one could see.
    phases = [phase for phase in PHASES if use.share(phase) >= 0.05]
    rows = "".join(
        f'<tr><th scope="row"><i class="swatch phase-{phase}" aria-hidden="true"></i>'
        f"{escape(PHASES[phase])}</th><td>{use.share(phase):.1f} %</td>"
        f"<td>{1000 * use.seconds[phase] / use.steps:.1f}</td></tr>"
        for phase in phases
    )
    bars = "".join(
        f"<li><span>{escape(label)}</span>{_bar(part, phases)}</li>"
        for label, part in [("whole run", use), *_by_epoch(steps)]
    )
    return (
        f'<p class="lead">Of every step, {use.share("data"):.1f} % was spent waiting for data.</p>'
        f'<div class="time"><ul class="bars">{bars}</ul>'
        '<table class="figures"><thead><tr><th scope="col">Phase</th><th scope="col">Share</th>'
        f'<th scope="col">ms per step</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _bar(use: TimeUse, phases: Sequence[str]) -> str:
    parts = "".join(
        f'<i class="phase-{phase}" style="flex-grow:{use.seconds[phase]:.6g}"></i>'
        for phase in phases
    )
    words = ", ".join(f"{PHASES[phase]} {use.share(phase):.1f} %" for phase in phases)
    return f'<div class="stack" role="img" aria-label="{escape(words)}">{parts}</div>'


def _by_epoch(steps: Sequence[dict[str, Any]]) -> list[tuple[str, TimeUse]]:
    """Cut the run into its epochs, or into at most ``_MOST_ROWS`` stretches of several."""
    epochs = [list(records) for _, records in groupby(steps, key=lambda record: record["epoch"])]
    size = -(-len(epochs) // _MOST_ROWS)
    result = []
    for start in range(0, len(epochs), size):
        group = [record for epoch in epochs[start : start + size] for record in epoch]
        first, last = group[0]["epoch"] + 1, group[-1]["epoch"] + 1
        label = f"epoch {first}" if first == last else f"{first}–{last}"
        result.append((label, time_use(group)))
    return result
