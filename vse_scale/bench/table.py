"""Results as text for a terminal, and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from vse_scale.bench.rows import Row

HEADER = ("contender", "median", "deciles", "unit", "times the peer", "peak MiB")


def text(rows: Sequence[Row]) -> str:
    """Return one table per case, and a line on where the time went, where that is known."""
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
        lines += [f"  {row.contender}: {binding(row)}" for row in listed if row.shares]
    return "\n".join(lines[1:])


def cells_of(row: Row) -> tuple[str, ...]:
    """Return what a table shows of a row."""
    return (
        row.contender,
        f"{row.median:.4g}",
        f"{row.low:.4g} to {row.high:.4g}",
        row.unit,
        f"{row.times:.2f}",
        "" if row.peak_bytes < 0 else f"{row.peak_bytes / 2**20:,.0f}",
    )


def binding(row: Row) -> str:
    """Return which part of the time binds, the largest, with all of them in percent."""
    shares = {
        part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1]) for part in row.shares.split(", ")
    }
    most = max(shares, key=lambda part: shares[part])
    listed = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    return f"{most} binds ({listed})"


def plot(rows: Iterable[Row], path: Path) -> None:
    """Draw, case by case, how many times better than the peer each contender is.

    The format is that of the file's ending: .svg or .png.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.contender != row.peer]
    figure, axes = pyplot.subplots(
        figsize=(9, 0.8 + 0.3 * max(len(shown), 1)), layout="constrained"
    )
    labels = [f"{row.stage}, {row.case}: {row.contender} / {row.peer}, {row.unit}" for row in shown]
    own = ["tab:blue" if row.contender.startswith("vse_scale") else "tab:gray" for row in shown]
    axes.barh(range(len(shown)), [row.times for row in shown], color=own)
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times the peer, median of rounds; more is better")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
