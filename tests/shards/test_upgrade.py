"""Version 2 of the format: written, grown, joined and verified; a kill leaves version 1 or 2."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from columns_made import columns_in, drawn_dataset, put_columns, put_manifest

from vse_shards import tabulate
from vse_shards.append import append, options_of
from vse_shards.build import BuildOptions, build
from vse_shards.card import card_of
from vse_shards.claim import _OURS
from vse_shards.cli import app
from vse_shards.errors import DatasetError
from vse_shards.index import Member, format_index, parse_index
from vse_shards.info import describe
from vse_shards.manifest import Manifest, Split
from vse_shards.merge import merge
from vse_shards.output import OutputFolder
from vse_shards.preview import write_preview
from vse_shards.records import ShardRecord, run_length_code
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.table import parse_table, table_name, table_of
from vse_shards.upgrade import upgrade
from vse_shards.verify import verify

SMALL = BuildOptions(shard_samples=10)


class Killed(BaseException):
    """Ends the process at once, in place of SIGKILL: nothing that follows is run."""


@pytest.fixture
def rows_of(tmp_path, tools):
    """Write a jsonl source of pictures by number."""

    def write(name: str, numbers) -> JsonlSource:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = []
        for number in numbers:
            (folder / f"{number}.jpg").write_bytes(tools.encoded(tools.picture(number)))
            captions = [f"{number} in {k} words" for k in range(1 + number % 3)]
            row = {"image": f"{number}.jpg", "image_id": number, "split": "train"}
            lines.append(json.dumps({**row, "captions": captions}) + "\n")
        (folder / "c.jsonl").write_text("".join(lines))
        return JsonlSource(str(folder / "c.jsonl"))

    return write


def kill_at(monkeypatch, moment: int, *, after: bool) -> None:
    """End the process at the file of this number, before or after it has its name."""
    done, real = [], OutputFolder._publish

    def publish(folder, temporary, name):
        if len(done) == moment and not after:
            raise Killed
        real(folder, temporary, name)
        done.append(name)
        if len(done) == moment + 1:
            raise Killed

    monkeypatch.setattr(OutputFolder, "_publish", publish)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_file_leaves_version_1_or_2_whole(after, tmp_path, tools, monkeypatch):
    folder = drawn_dataset(tmp_path / "set", 0)
    whole = shutil.copytree(folder, tmp_path / "whole")
    fingerprint = upgrade(whole).fingerprint
    files = tools.digests(whole)
    written = len(files) - len(tools.digests(folder)) + 1
    versions = set()
    for moment in range(written):
        copy = shutil.copytree(folder, tmp_path / f"{moment}")
        with monkeypatch.context() as patched:
            kill_at(patched, moment, after=after)
            with pytest.raises(Killed):
                upgrade(copy)
        found = Manifest.load(copy)
        versions.add(found.in_columns)
        assert found.fingerprint == fingerprint
        assert verify(copy) == []
        upgrade(copy)
        assert tools.digests(copy) == files
    assert versions == ({False, True} if after else {False})


KILLED = """
import os, pathlib, signal, sys
from vse_shards.output import OutputFolder
from vse_shards.upgrade import upgrade
real, left = OutputFolder._publish, list(range(7))
def publish(folder, temporary, name):
    real(folder, temporary, name)
    left.pop()
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
OutputFolder._publish = publish
upgrade(pathlib.Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_a_whole_dataset(tmp_path, tools):
    folder = tmp_path / "set"
    drawn_dataset(folder, 0, shards=60)
    whole = shutil.copytree(folder, tmp_path / "whole")
    upgrade(whole)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(folder.glob("*.idx.npy"))) == 7
    assert not Manifest.load(folder).in_columns
    assert verify(folder) == []
    upgrade(folder)
    assert tools.digests(folder) == tools.digests(whole)


@pytest.mark.parametrize("lost", [False, True])
def test_the_command_that_wrote_a_dataset_mends_a_column(tmp_path, rows_of, tools, lost):
    """As the message about the column says."""
    folder, source = tmp_path / "set", rows_of("in", range(5))
    build(source, str(folder), SMALL)
    upgrade(folder)
    files = tools.digests(folder)
    column = next(folder.glob("train.sizes.*.npy"))
    column.unlink() if lost else column.write_bytes(column.read_bytes()[:-1] + b"!")
    with pytest.raises(DatasetError, match="run the vse-shards command that wrote the dataset"):
        verify(folder)
    build(source, str(folder), SMALL)
    assert tools.digests(folder) == files


def test_an_upgrade_is_done_once_and_says_so(tmp_path, capfd, tools):
    folder = drawn_dataset(tmp_path / "set", 1)
    app(["upgrade", str(folder)], standalone_mode=False)
    assert "is of version 2" in capfd.readouterr().err
    files = tools.digests(folder)
    app(["upgrade", str(folder), "--json"], standalone_mode=False)
    again = capfd.readouterr()
    assert json.loads(again.out)["fingerprint"] == Manifest.load(folder).fingerprint
    assert "is in columns already" in again.err
    assert tools.digests(folder) == files


def test_what_cannot_be_upgraded_stays_as_it_is(tmp_path, tools):
    folder = drawn_dataset(tmp_path / "set", 1)
    index = folder / "train-000000.idx"
    index.write_text(index.read_text() + "\n")
    files = tools.digests(folder)
    for place, told in ((folder, "is not what the manifest says"), (tmp_path / "none", "no such")):
        with pytest.raises(DatasetError, match=told) as refused:
            app(["upgrade", str(place)], standalone_mode=False)
        assert "\n" not in str(refused.value)
    assert Manifest.load(folder).fingerprint
    assert files.items() <= tools.digests(folder).items()
    assert not (tmp_path / "none").exists()


def test_a_manifest_too_long_to_be_read_names_the_command_that_takes_it(tmp_path, monkeypatch):
    folder = drawn_dataset(tmp_path / "set", 1)
    fingerprint = Manifest.load(folder).fingerprint
    monkeypatch.setattr("vse_shards.manifest._MAX_BYTES", 100)
    with pytest.raises(DatasetError, match=r"has [\d,]+ bytes, limit 100; run vse-shards upgrade"):
        Manifest.load(folder)
    with monkeypatch.context() as patched:
        patched.setattr("vse_shards.manifest._MAX_BYTES", 2000)  # of the columns' own
        assert upgrade(folder).fingerprint == fingerprint


def test_a_grown_dataset_in_columns_is_the_grown_list(rows_of, tmp_path, tools):
    columns, listed = tmp_path / "columns", tmp_path / "listed"
    for out in (columns, listed):
        build(rows_of("in", range(25)), str(out), SMALL)
    upgrade(columns)
    before, opened = tools.digests(columns), Manifest.load(columns)
    for out in (columns, listed):
        append(rows_of("in", range(38)), str(out), options_of(str(out), BuildOptions()))
        assert verify(out) == []

    assert Manifest.load(columns).in_columns
    assert not Manifest.load(listed).in_columns
    assert Manifest.load(columns).fingerprint == Manifest.load(listed).fingerprint
    # Who opened the dataset before it grew reads its columns still.
    assert [len(split.shards) for split in opened.splits.values()] == [3]
    for out in (columns, listed):
        upgrade(out)
    stale = [name for name in before if not (columns / name).exists()]
    assert len(stale) == 4  # the columns that were replaced
    assert tools.digests(listed) == tools.digests(columns)
    assert describe(columns)["splits"] == describe(listed)["splits"]
    pages = [write_preview(out, tmp_path / "p.html", samples=5) for out in (columns, listed)]
    assert pages[0] == pages[1]


def test_a_kill_in_an_append_leaves_the_columns_that_were(rows_of, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(rows_of("in", range(15)), str(out), SMALL)
    upgrade(out)
    fingerprint, moment = Manifest.load(out).fingerprint, 0
    while Manifest.load(out).fingerprint == fingerprint:
        with monkeypatch.context() as patched:
            kill_at(patched, moment, after=True)
            try:
                append(rows_of("in", range(28)), str(out), options_of(str(out), BuildOptions()))
            except Killed:
                assert verify(out) == []
        moment += 1
    assert moment > 4
    assert Manifest.load(out).splits["train"].images == 28
    append(rows_of("in", range(28)), str(out), options_of(str(out), BuildOptions()))
    assert verify(out) == []


def test_datasets_of_both_versions_are_merged(rows_of, tmp_path):
    parts = [tmp_path / "one", tmp_path / "other"]
    for number, part in enumerate(parts):
        numbers = range(20 * number, 20 * number + 13)
        build(rows_of(f"in{number}", numbers), str(part), SMALL)
    merge(parts, tmp_path / "listed")
    upgrade(parts[1])
    merge(parts, tmp_path / "columns")
    listed, columns = (Manifest.load(tmp_path / name) for name in ("listed", "columns"))
    assert (listed.in_columns, columns.in_columns) == (False, True)
    assert listed.fingerprint == columns.fingerprint
    assert verify(tmp_path / "columns") == []


def test_a_long_build_is_written_in_columns_with_the_same_fingerprint(
    rows_of, tmp_path, tools, monkeypatch
):
    listed, columns = tmp_path / "listed", tmp_path / "columns"
    build(rows_of("in", range(35)), str(listed), SMALL)
    monkeypatch.setattr(tabulate, "MOST_LISTED", 3)
    summary = build(rows_of("in", range(35)), str(columns), SMALL)
    assert summary.manifest.fingerprint == Manifest.load(listed).fingerprint
    assert not Manifest.load(listed).in_columns
    assert Manifest.load(columns).in_columns
    assert verify(columns) == []
    upgrade(listed)
    assert tools.digests(listed) == tools.digests(columns)

    files = tools.digests(columns)
    victim = next(columns.glob("train.captions.*.npy"))
    victim.write_bytes(b"")
    (columns / "train-000001.idx.npy").write_bytes(b"")
    assert not build(rows_of("in", range(35)), str(columns), SMALL).changed
    assert tools.digests(columns) == files  # the same build mends them


def test_verify_reads_columns_and_binary_indices(tmp_path):
    folder = drawn_dataset(tmp_path / "set", 2, regions=True)
    upgrade(folder)
    assert verify(folder) == []
    table = folder / "train-000000.idx.npy"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert len(verify(folder)) == 1
    assert "idx.npy: has sha256" in verify(folder)[0]

    # Under a seal that fits: the digests of all columns are right, and what they say is not.
    table.write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    columns = columns_in(folder)
    digests, sizes = np.array(columns["digests"]), np.array(columns["sizes"])
    digests[0, 2] ^= 1
    sizes[0, 5] += 1
    for changes, told in (
        ({"digests": digests}, "idx.npy: has sha256"),
        ({"sizes": sizes}, "idx.npy: does not agree with train-000000.idx"),
    ):
        put_columns(folder, changes)
        assert any(told in problem for problem in verify(folder)), told
        put_manifest(folder, manifest)
    put_manifest(folder, {**manifest, "fingerprint": "0" * 64})
    assert any("says fingerprint 000000000000" in problem for problem in verify(folder))


def test_the_table_says_what_the_index_says(tmp_path):
    rng = np.random.default_rng(0)
    for limit in (1 << 20, 1 << 33):
        samples = []
        for row in range(50):
            kept = [e for e in ("jpg", "npy", "json", "txt") if rng.random() < 0.7] or ["json"]
            places = [(int(rng.integers(512, limit)), int(rng.integers(0, 999))) for _ in kept]
            names = [f"{row:08d}.{e}" for e in kept]
            samples.append([Member(e, *p, n) for e, p, n in zip(kept, places, names, strict=True)])
        index = parse_index(format_index(samples), "i")
        data = table_of(index)
        assert data == table_of(index)
        table = parse_table(
            data, "t", sha256=hashlib.sha256(data).hexdigest(), samples=50, size=limit + 999,
            keys=lambda index=index: index.keys,
        )  # fmt: skip
        for extension in ("jpg", "npy", "json"):
            np.testing.assert_array_equal(table.places(extension), index.places(extension))
            np.testing.assert_array_equal(table.has(extension), index.has(extension))
            assert [table.place(n, extension) for n in range(50)] == [
                index.place(n, extension) for n in range(50)
            ]
        assert list(table.keys) == index.keys
        assert np.load(io.BytesIO(data)).itemsize == (4 if limit < 1 << 32 else 8)


def test_names_go_on_beyond_a_million_shards():
    for name in ("train-1000000.tar", "a-b-12345678.idx", table_name("train-1000000")):
        assert _OURS.fullmatch(name)
    assert not _OURS.fullmatch("train-99999.tar")
    counts = run_length_code([2])
    shards = [ShardRecord(f"train-{n:06d}.tar", 1, 2, 3, "", "", counts) for n in (999_999, 10**6)]
    few, many = (
        card_of(Manifest({"train": Split(tuple(some))}, 0, "", {}, {}))
        for some in (shards[:1], shards)
    )
    assert "    path: train-[0-9][0-9][0-9][0-9][0-9][0-9].tar\n" in few
    six = "[0-9]" * 6
    assert f"    path:\n    - train-{six}.tar\n    - train-{six}[0-9].tar\n" in many
