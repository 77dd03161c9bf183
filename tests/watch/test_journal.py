"""Records of a run: what a killed run had trained beyond its checkpoint is taken back."""

from __future__ import annotations

from pathlib import Path

from vse_scale.run.journal import Journal, read_journal


def test_a_resumed_run_takes_back_what_it_trains_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, next_step=0)
    for step in range(5):
        journal.write({"step": step, "loss": step / 2})
    journal.close()
    again = Journal(path, next_step=3)
    again.write({"step": 3, "loss": -1.0})
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
