"""Every command that writes, on a disk that is full and on one that is read-only: one line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from corpus import SCALE, TARGETS, Target, make_corpus
from sandbox import run

WRITING = {name: target for name, target in TARGETS.items() if "{out}" in target.arguments} | {
    "eval to JSON": Target(
        SCALE, ("eval", "--embeddings", "{index}", "--json", "{out}"), ()
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    make_corpus(folder, Path(__file__).parents[1] / "small.yaml")
    return folder


@pytest.fixture(params=["full", "read-only"])
def disk(request, tmp_path):
    """A file system of its own, which takes no file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    if request.param == "full":
        (folder / "filler").write_bytes(bytes(64 << 10))
    else:
        subprocess.run(("mount", "-o", "remount,ro", str(folder)), check=True)
    yield folder
    subprocess.run(("umount", "-l", str(folder)), check=True)  # a failed build may hold it


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITING))
def test_what_cannot_be_written_is_one_line(name, disk, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = disk / "out"
    places = {one.name: one for one in corpus.iterdir()} | {"out": out}
    arguments = [word.format(**places) for word in WRITING[name].arguments]
    code, said = run(WRITING[name].main, ["x", *arguments], tmp_path)
    (line,) = [line for line in said.splitlines() if ": error: " in line]
    assert code == 2
    reasons = ("No space left", "database or disk is full", "Read-only file system")
    assert any(reason in line for reason in reasons), line
    assert str(disk) in line
    assert "None" not in line
    assert not out.is_file()
