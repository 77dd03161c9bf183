"""A run's logs: records beyond the checkpoint of a killed run are removed and trained again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vse_scale.errors import OutputError
from vse_scale.run.journal import Journal, read_journal, read_records
from vse_scale.run.records import StepRecord


def test_a_resumed_run_removes_what_it_trains_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, next_step=0)
    for step in range(5):
        journal.write(StepRecord(step=step, loss=step / 2))
    journal.close()
    again = Journal(path, next_step=3)
    again.write(StepRecord(step=3, loss=-1.0))
    again.close()
    assert [(r["step"], r["loss"]) for r in read_journal(path)] == [
        (0, 0.0), (1, 0.5), (2, 1.0), (3, -1.0),
    ]  # fmt: skip


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert read_journal(path) == [{"step": 0}, {"step": 1}]
    Journal(path, next_step=9).close()
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 1, "lo', "line 2: "),
        ("[1, 2]", "line 2: no object with a step"),
        ('{"loss": 1.0}', "line 2: no object with a step"),
        ('{"step": "1", "loss": 1.0}', "line 2: no object with a step"),
        ('{"step": 1}', "line 2: lacks loss"),
        ('{"step": 1, "loss": "low"}', "line 2: loss is 'low'"),
        ('{"step": 1, "loss": 1.0, "seconds": 3}', "line 2: seconds is 3"),
    ],
)
def test_a_damaged_line_is_one_message(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0, "loss": 1.0}}\n{line}\n')
    with pytest.raises(OutputError) as caught:
        read_records(path, StepRecord.from_json)
    said = str(caught.value)
    assert said.startswith(f"{path}: is damaged (")
    assert reason in said
    assert "\n" not in said
