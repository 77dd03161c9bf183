"""Many machines build one dataset, killed and repeated at will: every file as one builds it.

After rom1504/img2dataset#174 and #159 (shards that are missing when all machines are done),
mosaicml/streaming#335 (a last shard that is incomplete and taken for whole),
webdataset/webdataset#30 and mosaicml/streaming#646 (a writer that is started again writes over what
was there), and mosaicml/streaming#449 (an index merged from what happens to be there).
"""

from __future__ import annotations

import csv
import gc
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import encoded, tar_of, write_files, zip_of
from PIL import Image

from vse_shards import machines, plan_folder, planning, rows
from vse_shards.build import BuildOptions, build
from vse_shards.carve import Carving
from vse_shards.errors import DatasetError, OutputError, SourceError, StorageError
from vse_shards.machines import Part, make, seal
from vse_shards.manifest import Manifest
from vse_shards.output import OutputFolder
from vse_shards.planning import make_plan
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.threshold import RejectLimit
from vse_shards.verify import verify

SMALL = BuildOptions(shard_samples=7)
ONE = Part()


def picture(number: int) -> Image.Image:
    """A picture that JPEG can hold, unlike any of another number."""
    draws = np.random.default_rng(number)
    coarse = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class Killed(BaseException):
    """A machine that goes away in the middle of a call."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards in a piece, and several pieces."""
    monkeypatch.setattr(planning, "PIECE_ROWS", 16)


@pytest.fixture
def jsonl(small_source: Callable[..., Path]) -> Callable[[], Any]:
    """A source of 40 images in 7 shards, one of them damaged."""
    path = small_source(40)
    (path.parent / "images" / "0003.jpg").write_bytes(b"<html>404</html>")
    return lambda: open_source("jsonl", SourceRequest(str(path)))


@pytest.fixture
def one(jsonl: Callable[[], Any], tmp_path: Path) -> dict[str, str]:
    """Digests of all files, built by one machine."""
    build(jsonl(), str(tmp_path / "one"), SMALL)
    return digests(tmp_path / "one")


@pytest.fixture
def out(jsonl: Callable[[], Any], one: dict[str, str], tmp_path: Path) -> Path:
    """A dataset that is planned."""
    make_plan(jsonl(), str(tmp_path / "out"), SMALL)
    return tmp_path / "out"


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Go away before the file number ``step`` appears or disappears; temporary files stay."""
    left = step
    publish, remove, unlink = OutputFolder._publish, OutputFolder.remove, os.unlink

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            monkeypatch.setattr(os, "unlink", lambda *_: None)
            raise Killed

    def published(self: OutputFolder, *arguments: Any) -> None:
        count()
        publish(self, *arguments)

    def removed(self: OutputFolder, *arguments: Any) -> None:
        count()
        remove(self, *arguments)

    monkeypatch.setattr(OutputFolder, "_publish", published)
    monkeypatch.setattr(OutputFolder, "remove", removed)
    try:
        yield
    except Killed:
        pass
    finally:
        monkeypatch.setattr(OutputFolder, "_publish", publish)
        monkeypatch.setattr(OutputFolder, "remove", remove)
        monkeypatch.setattr(os, "unlink", unlink)


@pytest.mark.parametrize("builders", [2, 4, 7])
def test_builders_that_are_killed_at_random_give_the_files_of_one(
    builders: int,
    jsonl: Callable[[], Any],
    one: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = random.Random(builders)
    out = tmp_path / "many"
    planned = 0
    while not (out / ".plan" / "plan.json").exists():
        with killed(monkeypatch, draws.randint(0, 6) if planned < 5 else 1000):
            make_plan(jsonl(), str(out), SMALL)
        planned += 1
    parts = [Part(number, builders) for number in range(builders)] * 2
    draws.shuffle(parts)
    for part in parts:
        with killed(monkeypatch, draws.randint(0, 8)):
            make(str(out), part, workers=1)
        assert not (out / "manifest.json").exists()
    for number in range(builders):
        make(str(out), Part(number, builders), workers=1)
    for _ in range(5):
        with killed(monkeypatch, draws.randint(0, 8)):
            seal(str(out))
    seal(str(out))
    assert digests(out) == one
    assert verify(out, deep=True) == []


def _jsonl_with_faults(folder: Path) -> Path:
    files = {f"{n}.jpg": encoded(picture(n)) for n in range(20)}
    files["5.jpg"] = b"<html>404</html>"
    write_files(folder / "images", files)
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for name in [*files, "gone.jpg", *list(files)[:7], "0.jpg"]:
            writer.writerow([name, f"caption of {name}"])
        writer.writerow(["1.jpg", " "])
    return path


def _parquet(folder: Path) -> Path:
    rows = [
        {"image": {"bytes": encoded(picture(n)), "path": None}, "caption": f"picture {n}"}
        for n in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def _tars(folder: Path) -> Path:
    for tar in range(2):
        members = {}
        for n in range(10):
            members[f"{tar}{n}.jpg"] = encoded(picture(10 * tar + n))
            members[f"{tar}{n}.txt"] = f"picture {tar}{n}".encode()
        data = tar_of(members)
        name, data = (f"{tar}.tar.gz", gzip.compress(data)) if tar else (f"{tar}.tar", data)
        write_files(folder / "tars", {name: data})
    return folder / "tars"


def _zip(folder: Path) -> Path:
    files: dict[str, bytes] = {}
    for n in range(20):
        files[f"in/{n}.jpg"] = encoded(picture(n))
        files[f"in/{n}.txt"] = f"picture {n}".encode()
    write_files(folder, {"all.zip": zip_of(files)})
    return folder / "all.zip"


def _precomp(folder: Path) -> Path:
    path = folder / "precomp"
    path.mkdir()
    draws = np.random.default_rng(0)
    for split, images in (("train", 12), ("dev", 4)):
        np.save(path / f"{split}_ims.npy", draws.random((images, 5, 8), np.float32))
        captions = "".join(f"caption {n}\n" for n in range(5 * images))
        (path / f"{split}_caps.txt").write_text(captions)
    return path


SOURCES = {
    "csv": (
        _jsonl_with_faults,
        {"allow_missing": True, "max_rejects": RejectLimit(0.5, 0), "limit": 27},
    ),
    "parquet": (_parquet, {"carvings": (Carving("val", 30.0),)}),
    "webdataset": (_tars, {"splits": {"train": "mine"}, "prefix_ids": True, "seed": 5}),
    "folder": (_zip, {}),
    "precomp": (_precomp, {}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_files_of_one_machine(kind: str, tmp_path: Path) -> None:
    write, given = SOURCES[kind]
    request = SourceRequest(str(write(tmp_path)), allow_missing="allow_missing" in given)
    options = BuildOptions(**({"shard_samples": 3} | given))
    build(open_source(kind, request), str(tmp_path / "one"), options)
    make_plan(open_source(kind, request), str(tmp_path / "many"), options)
    gc.collect()  # what the planning machine unpacked ends with it
    for number in (2, 0, 1):
        make(str(tmp_path / "many"), Part(number, 3), workers=1)
    seal(str(tmp_path / "many"))
    assert digests(tmp_path / "many") == digests(tmp_path / "one")


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
@pytest.mark.parametrize("shards", [0, 1, 7, 24])
def test_every_shard_is_in_one_part(shards: int, parts: int) -> None:
    found = [n for i in range(parts) for n in range(shards)[Part(i, parts).of(shards)]]
    assert found == list(range(shards))


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "1/0", "a/b", "1/4/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match=r"numbered from 0: write 0/4"):
        Part.parse(text)


def test_seal_names_the_parts_that_are_missing_and_the_command_that_makes_them(
    out: Path, one: dict[str, str]
) -> None:
    make(str(out), Part(1, 5), workers=1)
    make(str(out), Part(4, 5), workers=1)
    with pytest.raises(OutputError) as refusal:
        seal(str(out))
    said = str(refusal.value)
    assert "4 of 7 shards are not made, the first is train-000000" in said
    assert f"run vse-shards make {out} --shards 0/5 (and so on: the parts are 0,2-3)" in said
    for number in (0, 2, 3):
        make(str(out), Part(number, 5), workers=1)
    seal(str(out))
    assert digests(out) == one


def _cut(out: Path) -> None:
    tar = out / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-10240])


def _without_index(out: Path) -> None:
    (out / "train-000001.idx").unlink()


def _without_record(out: Path) -> None:
    (out / "train-000001.json").unlink()


def _half_record(out: Path) -> None:
    record = out / "train-000001.json"
    record.write_bytes(record.read_bytes()[:100])


def _other_record(out: Path) -> None:
    shutil.copy(out / "train-000000.json", out / "train-000001.json")


@pytest.mark.parametrize(
    "damage", [_cut, _without_index, _without_record, _half_record, _other_record]
)
def test_a_shard_that_is_not_whole_is_not_taken_for_one(
    damage: Callable[[Path], None], out: Path, one: dict[str, str]
) -> None:
    make(str(out), ONE, workers=1)
    damage(out)
    with pytest.raises(OutputError, match="1 of 7 shards are not made, the first is train-000001"):
        seal(str(out))
    assert not (out / "manifest.json").exists()
    assert make(str(out), ONE, workers=1).written == 1
    seal(str(out))
    assert digests(out) == one


def test_a_maker_that_is_started_again_writes_nothing_twice(out: Path) -> None:
    make(str(out), Part(0, 2), workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*-*")}
    assert make(str(out), Part(0, 2), workers=1).written == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("*-*")}


def test_all_commands_can_be_repeated_once_the_dataset_is_sealed(
    out: Path, jsonl: Callable[[], Any], one: dict[str, str]
) -> None:
    make(str(out), ONE, workers=1)
    assert seal(str(out)) is not None
    assert seal(str(out)) is None
    assert make(str(out), ONE, workers=1).sealed
    assert digests(out) == one
    make_plan(jsonl(), str(out), SMALL)  # checks every shard of the dataset anew
    _cut(out)
    assert make(str(out), ONE, workers=1).written == 1
    seal(str(out))
    assert digests(out) == one


def test_a_late_maker_leaves_a_sealed_dataset_as_it_is(
    out: Path, one: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, slow = machines.run_tasks, []

    def meanwhile(*arguments: Any) -> int:
        """The others make all shards and seal, before this one begins with its first."""
        if not slow:
            slow.append(True)
            monkeypatch.setattr(machines, "run_tasks", run)
            monkeypatch.setattr("vse_shards.output.locked_folder", _unlocked)
            make(str(out), ONE, workers=1)
            seal(str(out))
        return run(*arguments)

    monkeypatch.setattr(machines, "run_tasks", meanwhile)
    assert make(str(out), Part(0, 2), workers=1).sealed
    assert digests(out) == one


@contextmanager
def _unlocked(path: str, *, shared: bool = False) -> Iterator[bool]:
    """As on a network file system that has no locks."""
    yield True


def test_a_seal_that_is_too_early_takes_nothing_from_those_at_work(
    out: Path, one: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vse_shards.output.locked_folder", _unlocked)
    publish, early = OutputFolder._publish, []

    def published(self: OutputFolder, temporary: str, name: str) -> None:
        if name.endswith(".tar") and not early:
            early.append(name)
            with pytest.raises(OutputError, match="are not made"):
                seal(str(out))
        publish(self, temporary, name)

    monkeypatch.setattr(OutputFolder, "_publish", published)
    make(str(out), ONE, workers=1)
    (out / ".train-000000.tar.left.vse-tmp").write_bytes(b"of a maker that was killed")
    seal(str(out))
    assert early
    assert digests(out) == one


def test_a_maker_of_another_plan_ends(
    out: Path, jsonl: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vse_shards.output.locked_folder", _unlocked)
    publish, again = OutputFolder._publish, []

    def published(self: OutputFolder, temporary: str, name: str) -> None:
        if name.endswith(".tar") and not again:
            again.append(name)
            make_plan(jsonl(), str(out), BuildOptions(shard_samples=5))
        publish(self, temporary, name)

    monkeypatch.setattr(OutputFolder, "_publish", published)
    with pytest.raises(OutputError, match="another build has begun in this folder since"):
        make(str(out), ONE, workers=1)
    monkeypatch.setattr(OutputFolder, "_publish", publish)
    make(str(out), ONE, workers=1)
    seal(str(out))
    assert verify(out, deep=True) == []
    assert Manifest.load(out).build["shard_samples"] == 5


def test_a_machine_that_does_not_see_the_images_loses_none(
    out: Path, one: dict[str, str], tmp_path: Path
) -> None:
    images = tmp_path / "source" / "images"
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"is not on this machine.*mount its folder here"):
        make(str(out), ONE, workers=1)
    (tmp_path / "elsewhere").rename(images)
    whole = (images / "0007.jpg").read_bytes()
    (images / "0007.jpg").write_bytes(whole[:300])
    with pytest.raises(StorageError, match="has 300 bytes here"):
        make(str(out), ONE, workers=1)
    (images / "0007.jpg").write_bytes(whole)
    make(str(out), ONE, workers=1)
    seal(str(out))
    assert digests(out) == one


def test_an_image_that_is_gone_is_planned_without(
    out: Path, jsonl: Callable[[], Any], tmp_path: Path
) -> None:
    (tmp_path / "source" / "images" / "0007.jpg").unlink()
    with pytest.raises(StorageError, match="run vse-shards plan again if it is gone"):
        make(str(out), ONE, workers=1)
    options = BuildOptions(shard_samples=7, allow_missing=True)
    make_plan(jsonl(), str(out), options)
    make(str(out), ONE, workers=1)
    seal(str(out))
    build(jsonl(), str(tmp_path / "again"), options)
    assert digests(out) == digests(tmp_path / "again")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"simplejpeg": "1.0.0"}, "this machine has simplejpeg 1.0.0, .*pip install simplejpeg=="),
        ({"pillow-heif": "9.9"}, "this machine has pillow-heif 9.9, .* pip uninstall pillow-heif"),
        ({"Pillow": ""}, r"this machine has Pillow \(not installed\), .*pip install Pillow=="),
    ],
)
def test_a_machine_with_other_decoders_is_refused(
    versions: dict[str, str], said: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan_folder.libraries()
    monkeypatch.setattr(machines, "libraries", lambda: found | versions)
    with pytest.raises(DatasetError, match=said):
        make(str(out), ONE, workers=1)


def test_a_build_in_a_planned_folder_goes_on_and_takes_the_plan_away(
    out: Path, jsonl: Callable[[], Any], one: dict[str, str]
) -> None:
    make(str(out), Part(0, 2), workers=1)
    assert build(jsonl(), str(out), SMALL).built == 4
    assert digests(out) == one


def test_a_plan_goes_on_with_the_shards_of_an_unfinished_build(
    jsonl: Callable[[], Any], one: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "many"
    with killed(monkeypatch, 8):  # the plan, and three files of each shard
        build(jsonl(), str(out), SMALL)
    make_plan(jsonl(), str(out), SMALL)
    assert make(str(out), ONE, workers=1).written == 5
    seal(str(out))
    assert digests(out) == one


def test_a_plan_leaves_another_dataset_alone(
    jsonl: Callable[[], Any], one: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="choose another folder, or remove that dataset"):
        make_plan(jsonl(), str(tmp_path / "one"), BuildOptions(shard_samples=8))
    assert digests(tmp_path / "one") == one


def test_too_many_rejects_are_accepted_as_the_message_says(
    small_source: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_source(30)
    for number in range(12):
        (path.parent / "images" / f"{number:04d}.jpg").write_bytes(b"<html>404</html>")
    source = open_source("jsonl", SourceRequest(str(path)))
    make_plan(source, str(tmp_path / "out"), SMALL)
    make(str(tmp_path / "out"), ONE, workers=1)
    with pytest.raises(SourceError, match=r"12 of 30 rows cannot be used, .*--max-rejects 12"):
        seal(str(tmp_path / "out"))
    summary = seal(str(tmp_path / "out"), RejectLimit.parse("12"))
    assert summary is not None
    assert summary.images == 18
    assert sum(summary.rejects.values()) == 12


def test_an_image_in_two_splits_is_accepted_as_the_message_says(
    small_source: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_source(10)
    shutil.copy(path.parent / "images" / "0000.jpg", path.parent / "images" / "0001.jpg")
    source = open_source("jsonl", SourceRequest(str(path)))
    make_plan(source, str(tmp_path / "out"), SMALL)
    make(str(tmp_path / "out"), ONE, workers=1)
    with pytest.raises(SourceError, match=r"in more than one split, .*--allow-leaks"):
        seal(str(tmp_path / "out"))
    summary = seal(str(tmp_path / "out"), allow_leaks=True)
    assert summary is not None
    assert summary.duplicates == 1


@pytest.mark.parametrize("size", [0, 208])
def test_a_damaged_plan_is_made_again(
    size: int, out: Path, jsonl: Callable[[], Any], one: dict[str, str]
) -> None:
    for name in ("plan.json", "shards.jsonl", "rows-00001.sqlite"):
        path = out / ".plan" / name
        data = path.read_bytes()
        assert size < len(data)
        path.write_bytes(data[:size])
        with pytest.raises(DatasetError, match="run vse-shards plan again"):
            make(str(out), ONE, workers=1)
        make_plan(jsonl(), str(out), SMALL)
    make(str(out), ONE, workers=1)
    seal(str(out))
    assert digests(out) == one


def test_rows_of_another_piece_are_not_taken(out: Path) -> None:
    shutil.copy(out / ".plan/rows-00000.sqlite", out / ".plan/rows-00001.sqlite")
    with pytest.raises(
        DatasetError, match=r"rows-00001.sqlite: is damaged: its rows are not those"
    ):
        make(str(out), ONE, workers=1)


_COLUMNS = "number INTEGER PRIMARY KEY, body, image, regions"
STRANGE_PIECES = {
    "a view": (
        "CREATE VIEW rows AS SELECT 0 AS number, '{}' AS body, NULL AS image, NULL AS regions",
        "its rows are no table",
    ),
    "a column that takes a gigabyte": (
        f"CREATE TABLE rows ({_COLUMNS}, more AS (hex(zeroblob(1 << 29))))", "are computed",
    ),
    "a virtual table": (
        "CREATE VIRTUAL TABLE rows USING fts5(number, body, image, regions)",
        "its rows are no table",
    ),
    "another table": (f"CREATE TABLE others ({_COLUMNS})", "its rows are no table"),
    "no rows": (f"CREATE TABLE rows ({_COLUMNS})", "its rows are not those"),
    "a text that is too long": (
        f"CREATE TABLE rows ({_COLUMNS}); "
        "INSERT INTO rows VALUES (0, printf('%.*c', 4000, 'x'), NULL, NULL)",
        "string or blob too big",
    ),
}  # fmt: skip


def test_a_piece_of_a_stranger_computes_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After osquery/osquery#5702: the schema of a SQLite file computes while it is read."""
    piece = out / ".plan" / "rows-00000.sqlite"
    monkeypatch.setattr(rows, "MOST_BYTES", 3000)
    for script, reason in STRANGE_PIECES.values():
        piece.unlink()
        with closing(sqlite3.connect(piece)) as db:
            db.executescript(script)
        before = piece.read_bytes()
        with pytest.raises(DatasetError, match=rf"{reason}.*; run vse-shards plan again$"):
            make(str(out), ONE, workers=1)
        assert piece.read_bytes() == before
        assert not list(out.glob("*.tar"))
    piece.unlink()
    os.mkfifo(piece)
    with pytest.raises(DatasetError, match=r"run vse-shards plan again$"):
        make(str(out), ONE, workers=1)


PLAN, LIST, PIECE, LOST = "plan.json", "shards.jsonl", "rows-00000.sqlite", "problems.jsonl"
HUGE = 10**4000
WRONG_VALUES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    (PLAN, "build", ([], "x", None, {}, {"quality": 0})),
    (PLAN, "libraries", ("x", 3, None)),
    (PLAN, "lists", (HUGE, "\x1b]52;c;eA==\x07", None)),
    (PLAN, "notes", (-1, "x", [1])),
    (PLAN, "read", ([[1]], -1, HUGE)),
    (PLAN, "options", (3, {}, {"max_rejects": ["x", 0]}, {"max_rejects": [2, 0]})),
    (PLAN, "source", (3, {"rows": []})),
    (PLAN, "name", (None, 3)),
    (LIST, "stem", ("../../evil", "/etc/evil", "a/b", "", "\0", "x" * 9999, 3)),
    (LIST, "piece", ("../../evil", "/etc/passwd", "x", "", "\0", -1)),
    (LIST, "split", (None, 3, "\x1b[2J", "x" * 9999)),
    (LIST, "first", (-1, 2**62, 2**70, 10**7, HUGE, "x", [[1]])),
    (LIST, "rows", (-1, 2**62, 2**70, 9999, HUGE, {})),
    (LIST, "first_key", (-1, HUGE, None)),
    (LIST, "fingerprint", ([], 3)),
    (PIECE, "body", ("[", "3", "{}", "null", "[" * 100_000, b"\xff", None, 5, '{"captions": 3}')),
    (PIECE, "image", (3, b"\xff", None)),
    (PIECE, "regions", (3, b"\xff", "/etc/passwd")),
    (LOST, "", ("3\n", '{"a": 1}\n', "[[\n", "[" * 100_000, "\udcff\n")),
)


def _put(folder: Path, file: str, key: str, value: Any) -> None:
    """Set a value in a file of a plan, with its digest."""
    path, plan = folder / file, folder / PLAN
    if file == PIECE:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE rows SET {key} = ? WHERE number = 1", (value,))
        return
    if file == LOST:
        path.write_bytes(value.encode("utf-8", "surrogateescape"))
    else:
        first, *rest = [path.read_text()] if file == PLAN else path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | {key: value}), *rest]) + "\n")
    if file != PLAN:
        content = json.loads(plan.read_text())
        content["lists"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
        plan.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "key", "values"),
    WRONG_VALUES,
    ids=[f"{key} of {file}" for file, key, _ in WRONG_VALUES],
)
def test_wrong_values_of_a_plan_are_one_line(
    file: str, key: str, values: tuple[Any, ...], jsonl: Callable[[], Any], tmp_path: Path
) -> None:
    made = tmp_path / "deep" / "out"  # whose neighbours a stem may not name
    make_plan(jsonl(), str(made), SMALL)
    if file == LOST:
        make(str(made), ONE, workers=1)
    shutil.copytree(made / ".plan", good := tmp_path / "good")
    before = {path for path in tmp_path.rglob("*") if ".plan" not in path.parts}
    for value in values:
        _put(made / ".plan", file, key, value)
        with pytest.raises(DatasetError, match="run vse-shards plan again") as refused:
            seal(str(made)) if file == LOST else make(str(made), ONE, workers=1)
        assert len(str(refused.value)) < 400 + len(str(made))
        assert {path for path in tmp_path.rglob("*") if ".plan" not in path.parts} == before
        shutil.rmtree(made / ".plan")
        shutil.copytree(good, made / ".plan")
    if key == "build":
        make(str(made), ONE, workers=1)
        assert seal(str(made)) is not None


@pytest.mark.parametrize("command", [lambda out: make(out, ONE, 1), seal])
def test_a_folder_without_plan_is_none(command: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no plan; make one with vse-shards plan, or build"):
        command(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("images", ["here", "memory://in/source/images"])
def test_a_remote_folder_gets_the_files_of_a_local_one(
    images: str, jsonl: Callable[[], Any], one: dict[str, str], tmp_path: Path
) -> None:
    """From pictures of this machine, and of a storage; pieces are fetched, a few at a time."""
    memory = fsspec.filesystem("memory")
    source = jsonl()
    if images != "here":
        memory.put(str(tmp_path / "source"), "/in/source", recursive=True)
        source = open_source("jsonl", SourceRequest("memory://in/source/captions.jsonl"))
    try:
        make_plan(source, "memory://many", SMALL)
        for number in (1, 0):
            make("memory://many", Part(number, 2), workers=4)
            if number:
                with pytest.raises(OutputError, match="--shards 0/2, then vse-shards seal"):
                    seal("memory://many")
        assert seal("memory://many") is not None
        assert seal("memory://many") is None
        found = {
            name.removeprefix("/many/"): hashlib.sha256(memory.cat_file(name)).hexdigest()
            for name in memory.find("/many")
        }
    finally:
        memory.rm("/", recursive=True)
    assert found == one


def test_the_commands_say_what_comes_next(
    small_source: Callable[..., Path], tmp_path: Path, command: Callable[..., Any]
) -> None:
    source = ("--source", "jsonl", "--input", small_source(10))
    out = tmp_path / "out"
    said = command("plan", out, *source, "--shard-samples", 3).stderr
    assert "train 8 images, val 2 images in 4 shards" in said
    assert f"vse-shards make {out} --shards I/N, I from 0; then, on one: vse-shards seal" in said
    early = command("seal", out)
    assert early.returncode == 2
    assert early.stderr.splitlines()[-1].startswith("vse-shards: error: ")
    made = command("make", out, "--json")
    assert json.loads(made.stdout) == {
        "out": str(out), "part": "0/1", "shards": 4, "written": 4, "sealed": False,
    }  # fmt: skip
    sealed = command("seal", out, "--json")
    assert json.loads(sealed.stdout)["images"] == 10


def _lives(group: int) -> bool:
    """Return whether a process of a group runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("builders", [2, 4, 7])
def test_processes_that_are_killed_at_random_give_the_files_of_one(
    builders: int, small_source: Callable[..., Path], tmp_path: Path
) -> None:
    path, options, draws = small_source(60), BuildOptions(shard_samples=3), random.Random(builders)
    build(open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "one"), options)
    out = tmp_path / "many"
    make_plan(open_source("jsonl", SourceRequest(str(path))), str(out), options)
    code = "from vse_shards.cli import main; main()"
    groups = []

    def start(number: int) -> subprocess.Popen[bytes]:
        arguments = ["make", str(out), "--shards", f"{number}/{builders}", "--workers", "2"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        groups.append(process.pid)
        return process

    at_work = [start(number) for number in range(builders)]
    kills = 0
    while kills < builders:
        wanted = len(list(out.glob("*.tar"))) + draws.randint(0, 2)
        while len(list(out.glob("*.tar"))) < wanted and any(p.poll() is None for p in at_work):
            time.sleep(0.01)
        number = draws.randrange(builders)
        at_work[number].send_signal(signal.SIGKILL)
        at_work[number].wait()
        kills += 1
        at_work[number] = start(number)
    assert [process.wait() for process in at_work] == [0] * builders
    deadline = time.monotonic() + 120
    while any(map(_lives, groups)):  # workers of killed makers, which see that these are gone
        assert time.monotonic() < deadline
        time.sleep(0.05)
    seal(str(out))
    assert digests(out) == digests(tmp_path / "one")
