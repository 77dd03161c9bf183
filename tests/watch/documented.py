"""The table of metrics in docs/operations.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def documented_metrics() -> dict[str, tuple[str, frozenset[str], str]]:
    """Type, labels, and which ranks serve it, by name."""
    rows = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `vse_scale_"):
            name, kind, labels, ranks, _ = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = (kind, frozenset(re.findall("`(\\w+)`", labels)), ranks)
    return rows
