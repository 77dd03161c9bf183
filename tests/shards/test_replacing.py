"""A dataset that is replaced, extended or made of others, and a kill at any moment of that.

After ultralytics/ultralytics#8669 (a data set removed before its successor was there),
huggingface/datasets#6363 (a copy half written under its final name) and iterative/dvc#7945 (an
interrupted command that leaves neither the old nor the new).
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vse_shards import build as building
from vse_shards import replacing, seal
from vse_shards.append import append, options_of
from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError, SourceError
from vse_shards.manifest import Manifest
from vse_shards.merge import merge
from vse_shards.output import OutputFolder
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.verify import verify

SMALL = BuildOptions(shard_samples=3)
ANEW = replace(SMALL, shard_samples=4, overwrite=True)


class Killed(BaseException):
    """A kill at a chosen line."""


def die(*_, **__):
    raise Killed


@pytest.fixture
def old(small_source, tmp_path, tools):
    """A dataset, its source, and the files of the one that is to replace it."""
    source = JsonlSource(str(small_source(12)))
    build(source, str(tmp_path / "out"), SMALL)
    build(source, str(tmp_path / "fresh"), replace(ANEW, overwrite=False))
    return tmp_path / "out", source, tools.digests(tmp_path / "fresh")


def left_beside(out) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (building, "read_source"),
        (seal, "run_tasks"),
        (seal, "report_duplicates"),
        (seal, "finish"),
        (replacing, "_take_place"),
        (replacing, "exchange"),
        (replacing, "sync_folder"),
        (replacing, "_remove_folder"),
    ],
)
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_whole_dataset_is_there_whenever_it_ends(
    module, name, exchanges, old, monkeypatch, tools
):
    out, source, fresh = old
    before = tools.digests(out)
    if not exchanges:
        monkeypatch.setattr(replacing, "exchange", lambda one, other: False)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, die)
        with pytest.raises(Killed):
            build(source, str(out), ANEW)
    marked = {path.name: path for path in out.iterdir() if path.name.endswith(".vse-tmp")}
    for path in marked.values():
        path.unlink()
    assert tools.digests(out) in (before, fresh)
    assert verify(out) == []
    build(source, str(out), ANEW)
    assert tools.digests(out) == fresh
    assert left_beside(out) == []


def test_finished_shards_of_a_killed_replacement_are_kept(old, monkeypatch, capsys, tools):
    out, source, fresh = old
    with monkeypatch.context() as patch:
        patch.setattr(seal, "report_duplicates", die)
        with pytest.raises(Killed):
            build(source, str(out), ANEW)
    said = capsys.readouterr().err
    aside = out.parent / ".out.vse-new"
    assert f"{out}: stays as it is until the new dataset, in {aside}, is complete" in said
    assert f"{out}: is as it was; the unfinished dataset is in {aside}" in said
    with pytest.raises(OutputError, match="contains a dataset of another build"):
        build(source, str(out), replace(ANEW, overwrite=False))
    assert f"{aside}: was left by an unfinished --overwrite" in capsys.readouterr().err
    assert build(source, str(out), ANEW).built == 0
    assert f"going on with the unfinished dataset in {aside}" in capsys.readouterr().err
    assert tools.digests(out) == fresh


def refused(path, target):
    raise PermissionError(13, "no")


def test_a_kill_between_two_renames_is_mended(old, monkeypatch, tools, capsys):
    out, source, fresh = old
    before = tools.digests(out)
    rename = type(out).rename

    def die_after_the_first(path, target):
        if path.name.endswith(".vse-new"):
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "exchange", lambda one, other: False)
        patch.setattr(type(out), "rename", die_after_the_first)
        with pytest.raises(Killed):
            build(source, str(out), ANEW)
    assert not out.exists()
    moved = out.parent / ".out.vse-old"
    for again in (ANEW, SMALL):  # a plain build too
        with pytest.raises(SourceError):
            build(source, str(out), replace(again, splits={"absent": "train"}))
        assert tools.digests(out) == before
        out.rename(moved)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(type(out), "rename", refused)
        with pytest.raises(OutputError, match="cannot be put back: no; rename it, or remove it"):
            build(source, str(out), SMALL)
    (moved / "manifest.json").rename(moved / "kept")  # as of a removal that was begun
    replacing.put_back(str(out))
    assert not out.exists()
    (moved / "kept").rename(moved / "manifest.json")
    replacing.put_back(str(out))
    assert "is put back from" in capsys.readouterr().err
    build(source, str(out), ANEW)
    assert tools.digests(out) == fresh
    assert left_beside(out) == []


def test_folders_that_a_replacement_left_are_named(old, capsys):
    out, source, _ = old
    for name in (".out.vse-new", ".out.vse-old"):
        (out.parent / name).mkdir()
    build(source, str(out), SMALL)
    said = capsys.readouterr().err
    for name in (".out.vse-new", ".out.vse-old"):
        assert f"{out.parent / name}: was left by an unfinished --overwrite" in said
        assert (out.parent / name).is_dir()


def test_a_failure_between_two_renames_names_the_former_dataset(old, monkeypatch, tools):
    out, source, fresh = old
    rename = type(out).rename

    def fail(path, target):
        if path.name.endswith(".vse-new"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "exchange", lambda one, other: False)
        patch.setattr(type(out), "rename", fail)
        with pytest.raises(OutputError, match=r"the former dataset is in .*\.out\.vse-old"):
            build(source, str(out), ANEW)
    build(source, str(out), ANEW)
    assert tools.digests(out) == fresh


def test_a_source_that_yields_nothing_leaves_no_trace(old, tools):
    out, source, _ = old
    before = tools.digests(out)
    with pytest.raises(SourceError, match="has no rows of the requested splits"):
        build(source, str(out), replace(ANEW, splits={"absent": "train"}))
    assert tools.digests(out) == before
    assert left_beside(out) == []


def test_other_files_stay_and_two_builds_do_not_meet(old):
    out, source, _ = old
    with (
        replacing.OutputFolder(str(out)).opened(),
        pytest.raises(OutputError, match="another build is running"),
    ):
        build(source, str(out), ANEW)
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"contains other files \(thesis\.tex\)"):
        build(source, str(out), ANEW)
    assert (out / "thesis.tex").exists()
    assert left_beside(out) == []


def test_a_link_and_the_mode_of_its_folder_stay(old, tmp_path, tools):
    out, source, fresh = old
    out.chmod(0o2775)
    link = tmp_path / "link"
    link.symlink_to(out)
    build(source, str(link), ANEW)
    assert link.is_symlink()
    assert out.stat().st_mode & 0o7777 == 0o2775
    assert tools.digests(out) == fresh


def test_a_mount_point_is_filled_in_place_and_said(old, monkeypatch, capsys, tools):
    out, source, fresh = old
    monkeypatch.setattr(replacing.os.path, "ismount", lambda path: path == out)
    build(source, str(out), ANEW)
    assert "the dataset there is removed before the new one is built" in capsys.readouterr().err
    assert tools.digests(out) == fresh


@pytest.mark.parametrize("moment", ["a file is removed", "the shards are begun"])
def test_an_interrupted_replacement_in_place_goes_on_beside_a_text_of_the_owner(
    moment, old, monkeypatch, capsys, tools
):
    """The text was taken for a stranger's file once the manifest was gone."""
    out, source, fresh = old
    (out / "README.md").write_text("# Ours\n")
    monkeypatch.setattr(replacing.os.path, "ismount", lambda path: path == out)
    with monkeypatch.context() as patch:
        if moment == "a file is removed":
            remove, removed = OutputFolder.remove, []

            def die_at_the_third(folder, name):
                removed.append(name)
                return die() if len(removed) == 3 else remove(folder, name)

            patch.setattr(OutputFolder, "remove", die_at_the_third)
        else:
            patch.setattr(seal, "run_tasks", die)
        with pytest.raises(Killed):
            build(source, str(out), ANEW)
    assert not (out / "manifest.json").exists()
    build(source, str(out), ANEW)
    assert (out / "README.md").read_text() == "# Ours\n"
    (out / "README.md").unlink()
    assert tools.digests(out) == {n: d for n, d in fresh.items() if n != "README.md"}


def test_a_file_put_there_while_it_builds_stays(old, monkeypatch, capsys, tools):
    out, source, fresh = old

    def put(*arguments, **options):
        (out / "thesis.tex").write_text("years of work")
        return seal_before(*arguments, **options)

    seal_before = building.seal
    with monkeypatch.context() as patch:
        patch.setattr(building, "seal", put)
        with pytest.raises(OutputError, match=r"contains other files \(thesis\.tex\)"):
            build(source, str(out), ANEW)
    assert f"{out}: is as it was" in capsys.readouterr().err
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").rename(out.parent / "thesis.tex")
    assert build(source, str(out), ANEW).built == 0
    assert tools.digests(out) == fresh


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EIO, "a file has its name"])
def test_without_room_beside_it_the_old_dataset_stays(fault, old, monkeypatch, tools):
    out, source, fresh = old
    before = tools.digests(out)
    aside = out.parent / ".out.vse-new"
    with monkeypatch.context() as patch:
        if isinstance(fault, int):

            def full(*_, **__):
                raise OSError(fault, os.strerror(fault))

            patch.setattr(Path, "mkdir", full)
        else:
            aside.write_text("")
        with pytest.raises(OutputError, match=rf"^{aside}: .* cannot be made"):
            build(source, str(out), ANEW)
    assert tools.digests(out) == before
    aside.unlink(missing_ok=True)
    build(source, str(out), ANEW)
    assert tools.digests(out) == fresh


def test_where_no_folder_may_be_made_beside_it_it_is_filled_in_place(
    old, monkeypatch, capsys, tools
):
    out, source, fresh = old

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    build(source, str(out), ANEW)
    assert "as no other folder can take its name" in capsys.readouterr().err
    assert tools.digests(out) == fresh


@pytest.mark.parametrize("out", ["/", "//"])
def test_the_root_of_a_file_system_is_one_line(out, old):
    with pytest.raises(OutputError, match=r"^/+: "):
        build(old[1], out, SMALL)


def test_the_current_folder_is_filled_in_place(old, monkeypatch, capsys, tools):
    out, source, fresh = old
    monkeypatch.chdir(out)
    build(source, ".", ANEW)
    assert "the dataset there is removed before the new one is built" in capsys.readouterr().err
    assert out.stat().st_ino == (out / ".").stat().st_ino
    assert Manifest.load(".").fingerprint == Manifest.load(out).fingerprint
    assert tools.digests(out) == fresh


def rows(folder, numbers, tools):
    """Write a source of pictures by number."""
    folder.mkdir()
    lines = []
    for number in numbers:
        (folder / f"{number}.jpg").write_bytes(tools.encoded(tools.picture(number)))
        lines.append(json.dumps({"image": f"{number}.jpg", "captions": [f"w {number}"]}) + "\n")
    (folder / "c.jsonl").write_text("".join(lines))
    return JsonlSource(str(folder / "c.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["append", "merge", "overwrite"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(task, tmp_path, tools):
    first, second = (
        rows(tmp_path / n, r, tools) for n, r in (("a", range(40)), ("b", range(40, 160)))
    )
    build(first, str(tmp_path / "A"), SMALL)
    build(second, str(tmp_path / "B"), SMALL)

    def run(out):
        if task == "append":
            append(second, str(out), options_of(str(out), BuildOptions()))
        elif task == "merge":
            merge([tmp_path / "A", tmp_path / "B"], out, prefix_ids=True)
        else:
            build(second, str(out), ANEW)

    def begin(out):
        shutil.rmtree(out, ignore_errors=True)
        if task != "merge":
            shutil.copytree(tmp_path / "A", out)

    whole, out = tmp_path / "whole", tmp_path / "out"
    begin(whole)
    started = time.monotonic()
    run(whole)
    seconds = time.monotonic() - started
    known = {Manifest.load(tmp_path / "A").fingerprint, Manifest.load(whole).fingerprint}
    context = multiprocessing.get_context("fork")  # without a start-up, moments are better spread
    draws = random.Random(7)
    begin(out)
    killed = 0
    for _ in range(60):
        if killed == 6:
            break
        started = time.monotonic()
        process = context.Process(target=run, args=(out,))
        process.start()
        process.join(draws.random() * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if task != "merge" or (out / "manifest.json").exists():
            assert verify(out) == []
            assert Manifest.load(out).fingerprint in known
        if process.exitcode == 0:
            seconds = min(seconds, time.monotonic() - started)
            begin(out)
    assert killed == 6
    run(out)
    found = tools.digests(out)
    assert found == tools.digests(whole)
    assert left_beside(out) == []
