"""The first steps of three small recipes find what they have always found."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from golden_losses import HERE, RECIPES, STEPS, facts_of, steps_of, trained_text
from one_rank import compare_across_machines, this_machine


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_steps_are_the_golden_ones(name: str, tmp_path: Path) -> None:
    expected, found = (HERE / f"{name}.txt").read_text(), trained_text(name, tmp_path)
    theirs, ours = facts_of(expected), facts_of(found)
    assert ours["datasets"] == theirs["datasets"], "the datasets differ, so their losses must"
    if ours == theirs:
        changes = difflib.unified_diff(
            expected.splitlines(), found.splitlines(), "golden", "found", lineterm="", n=0
        )
        assert expected == found, "\n".join(changes)
    else:
        compare_across_machines(steps_of(found), steps_of(expected))


@pytest.mark.parametrize("name", RECIPES)
def test_golden_losses_cover_the_steps(name: str) -> None:
    text = (HERE / f"{name}.txt").read_text()
    assert this_machine().keys() | {"datasets"} == facts_of(text).keys()
    assert [int(step["step"]) for step in steps_of(text)] == list(range(STEPS))
