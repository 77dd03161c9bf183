"""Results as text for a terminal, and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from vse_scale.bench.rows import Row

HEADER = ("implementation", "median", "deciles", "unit", "times the peer", "peak MiB")


def text(rows: Sequence[Row]) -> str:
    """Return one table per case, with a line on the phases of each row that has them."""
    lines = []
    for (stage, case, peer), group in groupby(
        rows, key=lambda row: (row.stage, row.case, row.peer)
    ):
        listed = list(group)
        lines += ["", f"{stage}, {case}; peer: {peer}"]
        cells = [HEADER, *(cells_of(row) for row in listed)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
        for line in cells:
            first, *others = (
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            lines.append("  ".join(["", first, *others]))
        lines += [f"  {row.implementation}: {binding(row)}" for row in listed if row.shares]
    return "\n".join(lines[1:])


def cells_of(row: Row) -> tuple[str, ...]:
    """Return the cells of a row in a table."""
    return (
        row.implementation,
        f"{row.median:.4g}",
        f"{row.low:.4g} to {row.high:.4g}",
        row.unit,
        f"{row.times:.2f}",
        "" if row.peak_bytes < 0 else f"{row.peak_bytes / 2**20:,.0f}",
    )


def binding(row: Row) -> str:
    """Return the phase that takes the most time, and all phases in percent."""
    shares = {
        part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1]) for part in row.shares.split(", ")
    }
    most = max(shares, key=lambda part: shares[part])
    listed = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    return f"{most} binds ({listed})"


def plot(rows: Iterable[Row], path: Path) -> None:
    """Plot how many times better than the peer each implementation is, a panel for each stage.

    Args:
        rows: results; those of the peers are not shown.
        path: file to write, whose suffix, .svg or .png, decides the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "vse_scale"  # the same drawing gives the same file
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    shown = sorted(
        (row for row in rows if row.implementation != row.peer), key=lambda row: row.stage
    )
    stages = {stage: list(group) for stage, group in groupby(shown, key=lambda row: row.stage)}
    heights = [len(listed) + 1.5 for listed in stages.values()] or [1]
    figure, panels = pyplot.subplots(
        len(heights), figsize=(10, 1 + 0.27 * sum(heights)), sharex=True, squeeze=False,
        layout="constrained", gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axes, (stage, listed) in zip(panels[:, 0], stages.items(), strict=False):
        _draw_bars(axes, stage, listed)
    last = panels[-1, 0]
    last.set_xscale("log", base=2)
    last.margins(x=0.1)
    last.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(-4, 8)]))
    last.xaxis.set_major_formatter(ScalarFormatter())
    last.xaxis.set_minor_formatter(NullFormatter())
    last.set_xlabel("times the peer, median of rounds: right of 1 is better; blue: this project")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _draw_bars(axes: Any, stage: str, listed: Sequence[Row]) -> None:
    """Draw a stage's panel: a bar per row, to the right of 1 if it is better than its peer."""
    own = [row.implementation.startswith("vse_scale") for row in listed]
    colours = ["tab:blue" if ours else "silver" for ours in own]
    gains = [row.times - 1.0 for row in listed]
    bars = axes.barh(range(len(listed)), gains, left=1.0, color=colours)
    axes.bar_label(bars, [f"{row.times:.2f}" for row in listed], padding=2, fontsize=7)
    axes.set_yticks(range(len(listed)), [_label(row) for row in listed], fontsize=7)
    axes.set_ylim(len(listed) - 0.4, -0.6)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_title(stage, loc="left", fontsize=9, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: Row) -> str:
    """Return the label of a bar, on at most two lines: case, implementation and peer."""
    ours = row.implementation.removeprefix("vse_scale").removeprefix(", ")
    compared = f"{ours or row.unit} / {row.peer}"
    if len(row.case) + len(compared) > 70:
        return f"{row.case}\n{compared}"
    return f"{row.case}: {compared}"
