"""The failed queries, with a form to browse them."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from vse_scale.report.cards import example_cards
from vse_scale.report.data import ReportData
from vse_scale.report.panel import Panel, Section
from vse_scale.report.pieces import absent, note
from vse_scale.retrieval.metrics import DIRECTIONS

_RANKS = (2, 6, 11, 51)  # of the right answer, to filter by


class Failures(Panel):
    """A card a query whose first answer is wrong, the worst first."""

    section = Section("failures", "Failures", 50)
    style = """\
#failures form { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: end;
  margin-bottom: 1.2rem; }
#failures form[hidden], #failures button[hidden], #failures article[hidden] { display: none; }
#failures label { display: grid; gap: .2rem; color: var(--soft); font-size: .8rem; }
#failures select, #failures input, #failures button { min-height: 2.5rem; padding: .45rem .6rem;
  border: 1px solid var(--rule); border-radius: 6px; background: var(--card); color: var(--ink);
  font: inherit; font-size: .95rem; }
#failures output { margin-left: auto; padding: .45rem 0; color: var(--soft); font-size: .85rem; }
#failures button { display: block; margin: 1.4rem auto 0; padding: .55rem 1.4rem; cursor: pointer; }
"""
    script = files("vse_scale.report.panels").joinpath("failures.js").read_text("utf-8")

    def render(self, data: ReportData) -> str:
        """Return the count of failures, the form and the cards."""
        failures = data.found.failures
        if failures is None:
            return absent("No failures were looked for in this report.")
        if not failures.shown:
            return absent("None: every query found a right answer first.")
        count = ", ".join(
            f"{failures.total[key]:,} of {failures.queries[key]:,} {direction.queries}"
            for key, direction in DIRECTIONS.items()
        )
        listed = len(failures.shown)
        said = f"Another answer came first for {count}; " + (
            "all of them are here."
            if listed == sum(failures.total.values())
            else f"the worst {listed} are here."
        )
        ranks = "".join(f'<option value="{rank}">{rank} or later</option>' for rank in _RANKS)
        queries = "".join(
            f'<option value="{key}">{escape(direction.queries)}</option>'
            for key, direction in DIRECTIONS.items()
        )
        every = " and ".join(direction.queries for direction in DIRECTIONS.values())
        return (
            f'{note(said)}<div id="failures-box"><form hidden>'
            f'<label>Query <select name="way"><option value="">'
            f"{escape(every)}</option>{queries}</select></label>"
            f'<label>Rank <select name="rank">{ranks}</select></label>'
            '<label>Words <input name="words" type="search" placeholder="red ring"></label>'
            f"<output></output></form>{example_cards(failures.shown)}"
            '<button type="button" hidden>Show more</button></div>'
        )


PANEL = Failures()
