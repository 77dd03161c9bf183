"""Folders of images with texts, lists of paths, zips and compressed tars, as people have them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source

PAIRS = {"a.jpg": b"A", "a.txt": b"of a", "b.jpg": b"B", "b.txt": b"of b"}


def read(kind, path, **request):
    """Bytes and captions by id, problems, and notes."""
    source = open_source(kind, SourceRequest(str(path), **request))
    found = list(source.rows())
    rows = {}
    for row in found:
        if isinstance(row, Row) and row.image is not None:
            with open(row.image.path, "rb") as file:
                file.seek(row.image.offset)
                rows[row.image_id] = file.read(row.image.size), [c.text for c in row.captions]
    problems = [(p.origin, p.reason, p.detail) for p in found if isinstance(p, Problem)]
    return rows, problems, " | ".join(source.notes.lines(source.name))


def tar_of(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zip_of(files):
    """A zip of files by name, or of pairs of name and bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, data)
    return file.getvalue()


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".tar.gz", gzip.compress), (".tgz", gzip.compress), (".tar.bz2", bz2.compress),
     (".TAR.XZ", lzma.compress), (".tar", gzip.compress)],
)  # fmt: skip
def test_a_compressed_tar_gives_the_rows_of_the_plain_one(tmp_path, suffix, pack):
    """Not all readers do: webdataset/webdataset#5 does, webdataset/webdataset#331 did not."""
    put(tmp_path, {f"x/train-0{suffix}": pack(tar_of(PAIRS)), "y/train-0.tar": tar_of(PAIRS)})
    plain = read("webdataset", tmp_path / "y")
    for path in (tmp_path / "x", tmp_path / f"x/train-0{suffix}"):
        rows, problems, notes = read("webdataset", path)
        assert rows == plain[0] == {"train-0/a": (b"A", ["of a"]), "train-0/b": (b"B", ["of b"])}
        assert problems == []
        assert "compressed input is unpacked" in notes


def test_a_compressed_tar_that_is_cut_is_incomplete(tmp_path):
    files = {}
    for n in range(20):
        files |= {f"{n}.jpg": bytes([n]) * 30_000, f"{n}.txt": b"w"}
    whole = gzip.compress(tar_of(files), 0)
    put(
        tmp_path,
        {"t.tar.gz": whole[: len(whole) // 2], "u.tar.gz": whole[:-6] + b"\0\0" + whole[-4:]},
    )
    for name, said in (("t", "end-of-stream"), ("u", "CRC")):
        rows, problems, _ = read("webdataset", tmp_path / f"{name}.tar.gz")
        assert len(rows) >= 7
        assert [reason for _, reason, _ in problems][:1] == ["incomplete tar"]
        assert said in problems[0][2]
        source = open_source("webdataset", SourceRequest(str(tmp_path / f"{name}.tar.gz")))
        with pytest.raises(SourceError, match="build what there is with --allow-missing"):
            build(source, str(tmp_path / "o"), BuildOptions())


def test_a_packed_tar_beside_the_plain_one_is_not_read_twice(tmp_path):
    put(tmp_path, {"t.tar": tar_of(PAIRS), "t.tar.gz": gzip.compress(tar_of(PAIRS))})
    rows, problems, notes = read("webdataset", tmp_path)
    assert (len(rows), problems) == (2, [])
    assert (
        "passed over 1 compressed tars that lie beside the plain ones, the first t.tar.gz" in notes
    )


def test_a_full_disk_is_no_lost_tar(tmp_path, monkeypatch):
    put(tmp_path, {"t.tar.gz": gzip.compress(tar_of(PAIRS))})
    source = open_source("webdataset", SourceRequest(str(tmp_path / "t.tar.gz")))
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: str(tmp_path / "absent"))
    with pytest.raises(SourceError, match=r"cannot be written: .*; make room"):
        list(source.rows())


def test_a_zip_of_a_folder_is_read(tmp_path):
    """Kaggle and GitHub hand out zips; macOS adds __MACOSX."""
    nested = {f"coco/val/{name}": data for name, data in PAIRS.items()}
    put(tmp_path, {"photos.zip": zip_of(nested | {"__MACOSX/coco/val/._a.jpg": b"x"})})
    rows, problems, notes = read("folder", tmp_path / "photos.zip")
    assert rows == {"coco/val/a.jpg": (b"A", ["of a"]), "coco/val/b.jpg": (b"B", ["of b"])}
    assert problems == []
    assert "split val: 2 files" in notes
    with pytest.raises(SourceError, match="is a zip, not a tar: read it with --source folder"):
        read("webdataset", tmp_path / "photos.zip")
    with pytest.raises(SourceError, match=r"but photos\.zip: read each zip with --source folder"):
        read("webdataset", tmp_path)


@pytest.mark.parametrize("data", [b"PK\x03\x04 cut", b"<html>404</html>"])
def test_a_damaged_zip_is_one_line(tmp_path, data):
    put(tmp_path, {"p.zip": data})
    with pytest.raises(SourceError, match=r"p\.zip: cannot be unpacked to .* not a zip file"):
        read("folder", tmp_path / "p.zip")


def test_a_zip_writes_nothing_outside(tmp_path, monkeypatch):
    spare = tmp_path / "a/b/c/spare"
    spare.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    evil = {f"{'../' * n}evil.txt": b"x" for n in range(1, 6)} | {"/etc/evil.txt": b"x"}
    put(tmp_path, {"p.zip": zip_of({**evil, **PAIRS})})
    source = open_source("folder", SourceRequest(str(tmp_path / "p.zip")))
    assert len([row for row in source.rows() if isinstance(row, Row)]) == 2
    (unpacked,) = spare.glob("*/*")
    found = list(tmp_path.rglob("evil.txt"))
    assert found  # within the folder, where zipfile's own rules put it
    assert all(path.is_relative_to(unpacked) for path in found)
    assert not Path("/etc/evil.txt").exists()


def test_unpacked_input_ends_with_a_build_that_is_terminated(tmp_path):
    """Schedulers end a job with SIGTERM, and its unpacked input stayed in TMPDIR."""
    (tmp_path / "temporary").mkdir()
    put(tmp_path, {"t.tar.gz": gzip.compress(tar_of(PAIRS))})
    code = (
        "import time, vse_shards.seal\n"
        "vse_shards.seal.run_tasks = lambda *_: print('begun', flush=True) or time.sleep(600)\n"
        "from vse_shards.cli import main; main()"
    )
    arguments = ["build", "--source", "webdataset", "--input", tmp_path / "t.tar.gz"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    assert list((tmp_path / "temporary").iterdir())
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.jpg", "../a.jpg", "/a.jpg", "./a.jpg"])
def test_two_files_of_a_zip_never_become_one(second, tmp_path):
    """The later of two pictures took the place of the earlier, which was lost without a word."""
    path = tmp_path / "p.zip"
    path.write_bytes(zip_of([*PAIRS.items(), (second, b"another")]))
    with pytest.raises(SourceError, match=r"p\.zip: a\.jpg and .*a\.jpg are two files .* to one"):
        read("folder", path)
    path.write_bytes(zip_of([*PAIRS.items(), (second, PAIRS["a.jpg"])]))  # a copy is no loss
    assert len(read("folder", path)[0]) == 2
    path.write_bytes(zip_of({**PAIRS, "A.jpg": b"C", "A.txt": b"of A"}))
    if not (tmp_path / "P.ZIP").exists():  # where case tells files apart
        assert len(read("folder", path)[0]) == 3


def test_a_zip_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    put(tmp_path, {"p.zip": zip_of(PAIRS)})
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 4, 5))
    with pytest.raises(SourceError, match=r"needs 10 bytes, and 5 are free$"):
        read("folder", tmp_path / "p.zip")
    assert not [p for p in (tmp_path / "temporary").rglob("*") if p.is_file()]


@pytest.mark.parametrize("texts", ["captions", "labels", "texts"])
def test_texts_in_a_folder_that_lies_as_images_does(tmp_path, texts):
    """Texts beside images/1.jpg, or in labels: readers know one of them (ultralytics#21224)."""
    files = {"images/train/1.jpg": b"1", f"{texts}/train/1.txt": b"one\ntwo",
             "images/val/1.jpg": b"2", f"{texts}/val/1.txt": b"three"}  # fmt: skip
    rows, problems, notes = read("folder", put(tmp_path, files))
    assert rows == {
        "images/train/1.jpg": (b"1", ["one", "two"]), "images/val/1.jpg": (b"2", ["three"])
    }  # fmt: skip
    assert problems == []
    assert "split train: 1 file" in notes
    assert "split val: 1 file" in notes


def test_boxes_are_no_captions(tmp_path):
    files = {"images/1.jpg": b"1", "labels/1.txt": b"0 0.5 0.5 0.1 0.2\n14 0.1 0.1 1e-3 0.2\n"}
    rows, problems, _ = read("folder", put(tmp_path, files))
    assert rows == {}
    assert problems == [("images/1.jpg", "no caption", "1.txt has boxes, not captions")]


def test_a_list_of_paths(tmp_path):
    """train.txt of darknet and ultralytics: a path a line, texts beside or in labels."""
    files = {"images/1.jpg": b"1", "labels/1.txt": b"one", "b/2.JPG": b"2", "b/2.TXT": b"two",
             "images/3.jpg": b"3", "images/4.jpg": b"4", "labels/4.txt": b"four"}  # fmt: skip
    files["val.txt"] = b"\xef\xbb\xbf./images/1.jpg\r\nb/2.JPG\n\nimages/3.jpg\n# hi\n"
    rows, problems, notes = read("folder", put(tmp_path, files) / "val.txt")
    assert rows == {"images/1.jpg": (b"1", ["one"]), "b/2.JPG": (b"2", ["two"])}
    assert problems == [
        ("val.txt line 4", "no caption", "there is no .txt beside it"),
        ("val.txt line 5", "malformed row",
         "# hi is no name of an image; a list has a path a line"),
    ]  # fmt: skip
    assert 'split val: 1 file, the first val.txt ("val" in its name)' in notes


def test_a_list_from_another_machine_is_read_below_images(tmp_path):
    files = {"lists/train.txt": b"D:\\data\\photos\\1.jpg\n/home/me/photos/2.jpg\n",
             "photos/1.jpg": b"1", "photos/1.txt": b"one",
             "photos/2.jpg": b"2", "photos/2.txt": b"two"}  # fmt: skip
    put(tmp_path, files)
    rows, problems, _ = read(
        "folder", tmp_path / "lists/train.txt", images=str(tmp_path / "photos")
    )
    assert list(rows.values()) == [(b"1", ["one"]), (b"2", ["two"])]
    assert problems == []


def test_an_image_of_a_list_that_is_not_there_is_missing(tmp_path, tools):
    picture = tools.encoded(tools.picture(0))
    put(
        tmp_path,
        {"t.txt": b"1.jpg\n2.jpg\n3.jpg\n", "1.jpg": picture, "1.txt": b"one", "2.txt": b"x"},
    )
    source = open_source("folder", SourceRequest(str(tmp_path / "t.txt")))
    with pytest.raises(SourceError, match=r"2 of 3 images are missing: 2\.jpg, 3\.jpg"):
        build(source, str(tmp_path / "o"), BuildOptions())


def test_other_files_are_answered(tmp_path):
    put(tmp_path, {"a.tar": tar_of(PAIRS), "a.jpg": b"A"})
    with pytest.raises(SourceError, match="is a tar: read it with --source webdataset"):
        read("folder", tmp_path / "a.tar")
    with pytest.raises(SourceError, match=r"is neither a folder, a zip of one, nor a \.txt"):
        read("folder", tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=r"--images applies to a \.txt of paths"):
        read("folder", tmp_path, images=str(tmp_path))


R_TABLES = {  # write.table(d, f, ...) with sep = ",", with sep = "\\t" and quote = F, row.names = F
    "spaces": '"image" "caption"\n"1" "a.jpg" "A dog, in \\"snow\\"."\n"2" "b.jpg" "Two cats."\n',
    "commas": '"image","caption"\n"1","a.jpg","A dog, in \\"snow\\"."\n"2","b.jpg","Two cats."\n',
    "tabs": 'image\tcaption\n1\ta.jpg\tA dog, in "snow".\n2\tb.jpg\tTwo cats.\n',
    "no names": '"image" "caption"\n"a.jpg" "A dog, in \\"snow\\"."\n"b.jpg" "Two cats."\n',
}


@pytest.mark.parametrize("table", R_TABLES)
def test_tables_of_r_have_a_cell_more_than_their_header(tmp_path, table):
    """stat.ethz.ch/R-manual/R-devel/library/utils/html/write.table.html, "CSV files"."""
    put(tmp_path, {"t.csv": R_TABLES[table].encode(), "a.jpg": b"A", "b.jpg": b"B"})
    rows, problems, notes = read("csv", tmp_path / "t.csv")
    assert rows == {"a.jpg": (b"A", ['A dog, in "snow".']), "b.jpg": (b"B", ["Two cats."])}
    assert problems == []
    assert ("as R writes the names of rows" in notes) == (table != "no names")


def test_a_delimiter_too_much_is_no_table_of_r(tmp_path):
    put(tmp_path, {"t.csv": b"image,caption\na.jpg,A dog, in snow\nb.jpg,A cat, at home\n",
                   "a.jpg": b"A", "b.jpg": b"B"})  # fmt: skip
    rows, problems, _ = read("csv", tmp_path / "t.csv")
    assert rows == {}
    assert len(problems) == 2
    assert all("must be quoted" in detail for _, _, detail in problems)


def test_features_of_butd_are_named_where_another_source_meets_them(tmp_path):
    line = "\t".join(["150367", "640", "480", "2", "A" * 40, "B" * 40])
    put(tmp_path, {"trainval.tsv.0": f"{line}\n{line}\n".encode()})
    with pytest.raises(SourceError, match="are read with --source butd"):
        read("csv", tmp_path / "trainval.tsv.0")
    with pytest.raises(SourceError, match="may be --source butd's"):
        read("precomp", tmp_path)
