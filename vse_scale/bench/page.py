"""Write committed results into a page, and plot them.

    python -m vse_scale.bench.page docs/performance/results.csv docs/performance.md

The tables of a stage, with the newest rows of every case on each device, go between
``<!-- results: STAGE -->`` and ``<!-- end of results -->``. The stage ``plot`` stands for the plot,
which is saved beside the CSV.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import groupby
from pathlib import Path

from vse_scale.bench import rows, table
from vse_scale.bench.rows import Row

_NUMBERS = len(table.HEADER) - 1
_SECTION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def newest(results: list[Row]) -> list[Row]:
    """Return the last row of each implementation and unit, case by case on each device."""
    last = {(row.device, row.stage, row.case, row.implementation, row.unit): row for row in results}
    cases = list(dict.fromkeys(key[:3] for key in last))
    return [row for case in cases for key, row in last.items() if key[:3] == case]


def filled(page: str, results: list[Row], plot: str) -> str:
    """Return ``page`` with the tables of ``results`` and a link to ``plot`` in their sections."""

    def tables(section: re.Match[str]) -> str:
        begin, stage, end = section.groups()
        listed = [row for row in results if row.stage == stage]
        shown = markdown(listed)
        if stage == "plot" and results:
            shown = f"![How many times better than its peer each implementation is]({plot})"
        return f"{begin}{shown or 'Not measured yet.'}\n{end}"

    return _SECTION.sub(tables, page)


def markdown(results: list[Row]) -> str:
    """Return a table per machine and versions, with the largest phase of each row below."""
    parts = []
    for measured, group in groupby(results, key=_measured_on):
        listed = list(group)
        rounds = max(row.repeats for row in listed)  # rows of bytes have one round
        lines = [f"| case | {' | '.join(table.HEADER)} |", f"|---|---|{'---:|' * _NUMBERS}"]
        case = ""
        for row in listed:
            name, *cells = table.cells_of(row)
            name += " (the peer)" if row.implementation == row.peer else ""
            lines.append(f"| {' | '.join((row.case if row.case != case else '', name, *cells))} |")
            case = row.case
        lines += ["", f"{rounds} rounds on {measured}."]
        bound = [
            f"- {row.case}, {row.implementation}: {table.binding(row)}"
            for row in listed
            if row.shares
        ]
        parts.append("\n".join([*lines, *([""] if bound else []), *bound]))
    return "\n\n".join(parts)


def _measured_on(row: Row) -> str:
    return (
        f"{row.device}, {row.threads} threads; torch {row.torch}, "
        f"DeepSpeed {row.deepspeed}, DALI {row.dali}, Triton {row.triton}, OpenCV {row.opencv}; "
        f"commit {row.commit}"
    )


def main(results: Path, page: Path) -> None:
    """Rewrite ``page``, and save the plot."""
    found = newest(rows.read(results))
    plot = results.with_suffix(".svg")
    link = os.path.relpath(plot, page.parent)
    page.write_text(filled(page.read_text("utf-8"), found, link), "utf-8")
    if found:
        table.plot(found, plot)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
