"""Files and folders are there whole, or as they were before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vse_scale.files import PARTIAL, whole_file, whole_folder, write_json, write_text


def test_a_file_is_replaced_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.name.endswith(PARTIAL)
    assert path.read_text() == "new"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "b"
    write_text(file, "old")
    (folder / "in").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), whole_file(file) as partial:
        partial.write_text(f"half {1 // 0}")
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as partial:
        (partial / f"half {1 // 0}").touch()
    assert file.read_text() == "old"
    assert {path.name for path in tmp_path.rglob("*")} == {"a.txt", "b", "in"}


def test_a_folder_replaces_another_and_what_a_kill_left(tmp_path: Path) -> None:
    path = tmp_path / "made" / "model"
    left = tmp_path / "made" / f".model{PARTIAL}"
    for old in (path, left):
        old.mkdir(parents=True)
        (old / "old").touch()
    with whole_folder(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "new").touch()
    assert [p.name for p in path.rglob("*")] == ["inner", "new"]
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_write_the_same_file_keep_apart(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", shared=True) as partial:
        assert str(os.getpid()) in partial.name
        partial.touch()
    assert (tmp_path / "a").exists()
