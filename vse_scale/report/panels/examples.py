"""Retrieval examples of queries drawn at random."""

from __future__ import annotations

from vse_scale.report.cards import example_cards
from vse_scale.report.data import ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, note
from vse_scale.retrieval.metrics import DIRECTIONS


class Examples(Panel):
    """A card a query, by direction."""

    section = Section("examples", "Examples", 40)
    style = """\
#examples h3 { margin: 2rem 0 .9rem; }
"""

    def render(self, data: ReportData) -> str:
        """Return the cards of each direction."""
        examples = data.found.examples
        if not examples:
            return absent("No retrieval examples were made for this report.")
        explained = (
            "Queries drawn at random. Each shows its nearest answers with their cosine "
            "similarity; ✓ right, ✗ wrong."
        )
        return note(explained) + "".join(
            f"<h3>{direction.queries.capitalize()} to {direction.answers}</h3>"
            + example_cards(e for e in examples if e.direction == direction.key)
            for direction in DIRECTIONS.values()
        )


PANEL = Examples()
