"""Figures of a simulated run, as a page and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vse_scale.config import Config
from vse_scale.data.plan import Plan
from vse_scale.planning.made_shards import ShardList
from vse_scale.planning.simulate import Cluster, Phase, Simulation
from vse_scale.planning.staged_nodes import Counted


@dataclass(frozen=True)
class Told:
    """Figures of one start, by name: seconds, shards and bytes; of nodes the mean and the most.

    Attributes:
        figures: as `as_json` has them.
    """

    figures: dict[str, Any]

    @classmethod
    def of(cls, phase: Phase, before: list[Counted] | None, step: float) -> Told:
        """Summarise a phase; ``before`` are the counts of its start."""
        stalls = np.array(phase.stalls)
        seconds = phase.begins[-1] + step
        later = stalls[1:]
        nodes = phase.counted
        earlier = before or [Counted() for _ in nodes]
        fetched = [len(n.fetched) - len(b.fetched) for n, b in zip(nodes, earlier, strict=True)]
        moved = [n.bytes - b.bytes for n, b in zip(nodes, earlier, strict=True)]
        again = [len(n.fetched) - len(set(n.fetched)) for n in nodes]
        found = [n.found - b.found for n, b in zip(nodes, earlier, strict=True)]
        return cls(
            {
                "first_step": phase.first,
                "steps": len(stalls),
                "first_batch_seconds": float(stalls[0]),
                "seconds": float(seconds),
                "stalled_seconds": float(later.sum()),
                "steps_that_waited": int((later > 1e-9).sum()),
                "longest_stall_seconds": float(later.max(initial=0.0)),
                "shards_fetched": _both(fetched),
                "shards_fetched_again": _both(again),
                "shards_found": _both(found),
                "bytes_fetched": _both(moved),
                "bytes_per_second": _both([size / seconds for size in moved]),
                "bytes_cached": _both([node.most for node in nodes]),
            }
        )

    def lines(self) -> list[str]:
        """Return a line a figure."""
        f = self.figures
        steps = f["steps"]
        return [
            _row("s to the first batch", f"{f['first_batch_seconds']:.2f}"),
            _row("s of all", f"{f['seconds']:.1f}"),
            _row(
                "s stalled after it",
                f"{f['stalled_seconds']:.2f}, in {f['steps_that_waited']:,} of {steps - 1:,} "
                f"steps, {f['longest_stall_seconds']:.2f} the longest",
            ),
            _row("shards a node fetched", _said(f["shards_fetched"], "{:,.1f}")),
            _row("  of them again", _said(f["shards_fetched_again"], "{:,.1f}")),
            _row("shards found on a node", _said(f["shards_found"], "{:,.1f}")),
            _row("GB a node fetched", _said(f["bytes_fetched"], "{:,.2f}", 1e9)),
            _row("MB/s a node", _said(f["bytes_per_second"], "{:,.1f}", 1e6)),
            _row("GB of shards on a node", _said(f["bytes_cached"], "{:,.2f}", 1e9)),
        ]


@dataclass(frozen=True)
class Simulated:
    """A run, and where a node was lost the start after it.

    Attributes:
        header: the run and what is supposed, in words.
        starts: of each start a heading and its figures.
    """

    header: list[str]
    starts: list[tuple[str, Told]]

    def text(self) -> str:
        """Return a page."""
        lines = list(self.header)
        for heading, told in self.starts:
            lines += ["", heading, *told.lines()]
        return "\n".join(lines)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the figures of each start, in bytes and seconds."""
        return [told.figures for _, told in self.starts]


def simulate(
    config: Config, shards: ShardList, cluster: Cluster, steps: int, lose_at: int | None,
    tell: Callable[[], None],
) -> Simulated:  # fmt: skip
    """Simulate ``steps`` steps of a run, and another start where a node is lost.

    Args:
        config: of the run.
        shards: of its dataset.
        cluster: where it runs.
        steps: how many, of each start.
        lose_at: the step after which the first node and its disk are lost; all start again from
            the checkpoint before it, an empty node in its place. None: none is lost.
        tell: called after each step.

    Raises:
        ConfigError: batch, ranks and dataset do not fit, or shards in use have no room on a node.
    """
    simulation = Simulation(config, shards, cluster)
    plan = simulation.plan
    header = _header(config, shards, cluster, plan)
    if lose_at is None:
        phase = simulation.run(0, steps, tell=tell)
        return Simulated(header, [(f"{steps:,} steps", Told.of(phase, None, cluster.step))])
    before = simulation.run(0, lose_at + 1, tell=tell)
    each = config.run.checkpoint_steps or config.run.checkpoint_epochs * plan.steps_per_epoch
    first = (lose_at + 1) // each * each
    after = simulation.run(first, steps, lost=0, tell=tell)
    gone = lose_at + 1 - first
    return Simulated(
        header,
        [
            (f"{lose_at + 1:,} steps, then a node is lost", Told.of(before, None, cluster.step)),
            (
                f"{steps:,} steps from step {first:,} on, {gone:,} trained again, an empty node in "
                "its place",
                Told.of(after, before.counted, cluster.step),
            ),
        ],
    )


def _header(config: Config, shards: ShardList, cluster: Cluster, plan: Plan) -> list[str]:
    storage = cluster.storage
    total = sum(shards.shard_bytes)
    supposed = [
        f"{storage.link / 1e6:,.0f} MB/s into a node",
        "storage that never binds"
        if storage.storage == float("inf")
        else f"{storage.storage / 1e6:,.0f} MB/s of the storage",
        f"{storage.request * 1e3:,.0f} ms to a shard's first byte",
        f"{cluster.step * 1e3:,.0f} ms a step",
    ]
    return [
        f"{cluster.nodes:,} nodes of {cluster.ranks} ranks, {len(shards.shard_sizes):,} shards of "
        f"{total / len(shards.shard_sizes) / 1e6:,.0f} MB, {total / 1e12:.3g} TB, "
        f"{plan.steps_per_epoch:,} steps an epoch",
        f"{config.data.global_batch:,} pairs a step, "
        f"{plan.streams} stream{'s'[: plan.streams - 1]}, a window of "
        f"{config.data.shuffle_window:,} shards, {config.data.cache_ahead} fetched ahead, "
        f"{config.data.cache_gb:g} GB a node",
        f"supposed: {', '.join(supposed)}",
    ]


def _both(values: list[int] | list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "most": float(np.max(values))}


def _said(both: dict[str, float], form: str, unit: float = 1.0) -> str:
    mean, most = (form.format(both[name] / unit) for name in ("mean", "most"))
    return mean if mean == most else f"{mean}, {most} the most"


def _row(what: str, value: str) -> str:
    return f"  {what:<28}{value}"
