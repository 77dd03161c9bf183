"""The difference of two runs' recalls with its interval, where both recorded their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vse_scale.report.data import Column
from vse_scale.retrieval.intervals import LEVEL, difference_intervals
from vse_scale.retrieval.recorded import RecordedRanks

_EXPLAINED = (
    f"Small beneath a difference: its {LEVEL} % interval, the same draws for both runs. Where that "
    "holds 0, these queries do not tell the two models apart, and the difference has no colour. It "
    "is about these two models: another run.seed moves recalls too."
)


def paired_intervals(columns: Sequence[Column]) -> tuple[Mapping[str, Any], str]:
    """Return the intervals of the last run's recalls less the first's, and a sentence about them.

    Without ranks of the same queries there are none, and the sentence says why; it is empty where
    a run was not validated.

    Raises:
        OutputError: a file of ranks is damaged.
    """
    first, last = columns[0], columns[-1]
    if first.run.results.best is None or last.run.results.best is None:
        return {}, ""
    found = [RecordedRanks.of_run(column.run) for column in (first, last)]
    for column, ranks in zip((first, last), found, strict=True):
        if ranks is None:
            return {}, (
                f"The differences have no intervals: {column.name} has no ranks of its best "
                f"validation. vse-scale report {column.run.folder.path} writes them."
            )
    before, after = found
    assert before is not None
    assert after is not None
    if not before.same_queries(after):
        return {}, "The differences have no intervals: the runs were validated on other data."
    return difference_intervals(before.ranks, after.ranks, before.caption_to_image), _EXPLAINED
