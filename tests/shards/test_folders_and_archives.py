"""Folders of images with texts, lists of paths, zips and compressed tars, as people have them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from archives import tar_of, write_files, zip_of

from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.sources.registry import SourceRequest, open_source

PAIRS = {"a.jpg": b"A", "a.txt": b"of a", "b.jpg": b"B", "b.txt": b"of b"}


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".tar.gz", gzip.compress), (".tgz", gzip.compress), (".tar.bz2", bz2.compress),
     (".TAR.XZ", lzma.compress), (".tar", gzip.compress)],
)  # fmt: skip
def test_a_compressed_tar_gives_the_rows_of_the_plain_one(tmp_path, read, suffix, pack):
    """Not all readers do: webdataset/webdataset#5 does, webdataset/webdataset#331 did not."""
    write_files(
        tmp_path, {f"x/train-0{suffix}": pack(tar_of(PAIRS)), "y/train-0.tar": tar_of(PAIRS)}
    )
    plain = read("webdataset", tmp_path / "y").stored
    assert plain == {"train-0/a": (b"A", ["of a"]), "train-0/b": (b"B", ["of b"])}
    for path in (tmp_path / "x", tmp_path / f"x/train-0{suffix}"):
        found = read("webdataset", path)
        assert found.stored == plain
        assert found.problems == []
        assert "compressed input is unpacked" in found.notes


def test_a_compressed_tar_that_is_cut_is_incomplete(tmp_path, read):
    files = {}
    for n in range(20):
        files |= {f"{n}.jpg": bytes([n]) * 30_000, f"{n}.txt": b"w"}
    whole = gzip.compress(tar_of(files), 0)
    write_files(
        tmp_path,
        {"t.tar.gz": whole[: len(whole) // 2], "u.tar.gz": whole[:-6] + b"\0\0" + whole[-4:]},
    )
    for name, said in (("t", "end-of-stream"), ("u", "CRC")):
        found = read("webdataset", tmp_path / f"{name}.tar.gz")
        assert len(found.stored) >= 7
        assert found.reasons[0][0] == "incomplete tar"
        assert said in found.reasons[0][1]
        source = open_source("webdataset", SourceRequest(str(tmp_path / f"{name}.tar.gz")))
        with pytest.raises(SourceError, match="build what there is with --allow-missing"):
            build(source, str(tmp_path / "o"), BuildOptions())


def test_a_packed_tar_beside_the_plain_one_is_not_read_twice(tmp_path, read):
    write_files(tmp_path, {"t.tar": tar_of(PAIRS), "t.tar.gz": gzip.compress(tar_of(PAIRS))})
    found = read("webdataset", tmp_path)
    assert (len(found.stored), found.problems) == (2, [])
    passed = "passed over 1 compressed tars that lie beside the plain ones, the first t.tar.gz"
    assert passed in found.notes


def test_a_full_disk_is_no_lost_tar(tmp_path, monkeypatch):
    write_files(tmp_path, {"t.tar.gz": gzip.compress(tar_of(PAIRS))})
    source = open_source("webdataset", SourceRequest(str(tmp_path / "t.tar.gz")))
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: str(tmp_path / "absent"))
    with pytest.raises(SourceError, match=r"cannot be written: .*; make room"):
        list(source.rows())


def test_a_zip_of_a_folder_is_read(tmp_path, read):
    """Kaggle and GitHub hand out zips; macOS adds __MACOSX."""
    nested = {f"coco/val/{name}": data for name, data in PAIRS.items()}
    write_files(tmp_path, {"photos.zip": zip_of(nested | {"__MACOSX/coco/val/._a.jpg": b"x"})})
    found = read("folder", tmp_path / "photos.zip")
    assert found.stored == {"coco/val/a.jpg": (b"A", ["of a"]), "coco/val/b.jpg": (b"B", ["of b"])}
    assert found.problems == []
    assert "split val: 2 files" in found.notes
    with pytest.raises(SourceError, match="is a zip, not a tar: read it with --source folder"):
        read("webdataset", tmp_path / "photos.zip")
    with pytest.raises(SourceError, match=r"but photos\.zip: read each zip with --source folder"):
        read("webdataset", tmp_path)


@pytest.mark.parametrize("data", [b"PK\x03\x04 cut", b"<html>404</html>"])
def test_a_damaged_zip_is_one_line(tmp_path, read, data):
    write_files(tmp_path, {"p.zip": data})
    with pytest.raises(SourceError, match=r"p\.zip: cannot be unpacked to .* not a zip file"):
        read("folder", tmp_path / "p.zip")


def test_a_zip_writes_nothing_outside(tmp_path, read, monkeypatch):
    spare = tmp_path / "a/b/c/spare"
    spare.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    evil = {f"{'../' * n}evil.txt": b"x" for n in range(1, 6)} | {"/etc/evil.txt": b"x"}
    write_files(tmp_path, {"p.zip": zip_of({**evil, **PAIRS})})
    source = read("folder", tmp_path / "p.zip")  # kept: it removes what it unpacked
    assert len(source.rows) == 2
    (unpacked,) = spare.glob("*/*")
    found = list(tmp_path.rglob("evil.txt"))
    assert found  # within the folder, where zipfile's own rules put it
    assert all(path.is_relative_to(unpacked) for path in found)
    assert not Path("/etc/evil.txt").exists()


def test_unpacked_input_ends_with_a_build_that_is_terminated(tmp_path):
    """Schedulers end a job with SIGTERM, and its unpacked input stayed in TMPDIR."""
    (tmp_path / "temporary").mkdir()
    write_files(tmp_path, {"t.tar.gz": gzip.compress(tar_of(PAIRS))})
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
def test_two_files_of_a_zip_never_become_one(second, tmp_path, read):
    """The later of two pictures took the place of the earlier, which was lost without a word."""
    path = tmp_path / "p.zip"
    path.write_bytes(zip_of([*PAIRS.items(), (second, b"another")]))
    with pytest.raises(SourceError, match=r"p\.zip: a\.jpg and .*a\.jpg are two files .* to one"):
        read("folder", path)
    path.write_bytes(zip_of([*PAIRS.items(), (second, PAIRS["a.jpg"])]))  # a copy is no loss
    assert len(read("folder", path).rows) == 2
    path.write_bytes(zip_of({**PAIRS, "A.jpg": b"C", "A.txt": b"of A"}))
    if not (tmp_path / "P.ZIP").exists():  # where case tells files apart
        assert len(read("folder", path).rows) == 3


def test_a_zip_that_does_not_fit_is_not_begun(tmp_path, read, monkeypatch):
    write_files(tmp_path, {"p.zip": zip_of(PAIRS)})
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 4, 5))
    with pytest.raises(SourceError, match=r"needs 10 bytes, and 5 are free$"):
        read("folder", tmp_path / "p.zip")
    assert not [p for p in (tmp_path / "temporary").rglob("*") if p.is_file()]


@pytest.mark.parametrize("texts", ["captions", "labels", "texts"])
def test_texts_in_a_folder_that_lies_as_images_does(tmp_path, read, texts):
    """Beside images/, or in labels/: readers know one of them (ultralytics/ultralytics#21224)."""
    files = {"images/train/1.jpg": b"1", f"{texts}/train/1.txt": b"one\ntwo",
             "images/val/1.jpg": b"2", f"{texts}/val/1.txt": b"three"}  # fmt: skip
    found = read("folder", write_files(tmp_path, files))
    assert found.stored == {
        "images/train/1.jpg": (b"1", ["one", "two"]), "images/val/1.jpg": (b"2", ["three"])
    }  # fmt: skip
    assert found.problems == []
    assert "split train: 1 file" in found.notes
    assert "split val: 1 file" in found.notes


def test_boxes_are_no_captions(tmp_path, read):
    files = {"images/1.jpg": b"1", "labels/1.txt": b"0 0.5 0.5 0.1 0.2\n14 0.1 0.1 1e-3 0.2\n"}
    found = read("folder", write_files(tmp_path, files))
    assert found.stored == {}
    (one,) = found.problems
    assert (one.origin, one.reason) == ("images/1.jpg", "no caption")
    assert one.detail == "1.txt has boxes, not captions"


def test_a_list_of_paths(tmp_path, read):
    """train.txt of darknet and ultralytics: a path a line, texts beside or in labels."""
    files = {"images/1.jpg": b"1", "labels/1.txt": b"one", "b/2.JPG": b"2", "b/2.TXT": b"two",
             "images/3.jpg": b"3", "images/4.jpg": b"4", "labels/4.txt": b"four"}  # fmt: skip
    files["val.txt"] = b"\xef\xbb\xbf./images/1.jpg\r\nb/2.JPG\n\nimages/3.jpg\n# hi\n"
    found = read("folder", write_files(tmp_path, files) / "val.txt")
    assert found.stored == {"images/1.jpg": (b"1", ["one"]), "b/2.JPG": (b"2", ["two"])}
    assert [(p.origin, p.reason, p.detail) for p in found.problems] == [
        ("val.txt line 4", "no caption", "there is no .txt beside it"),
        ("val.txt line 5", "malformed row",
         "# hi is no name of an image; a list has a path a line"),
    ]  # fmt: skip
    assert 'split val: 1 file, the first val.txt ("val" in its name)' in found.notes


def test_a_list_from_another_machine_is_read_below_images(tmp_path, read):
    files = {"lists/train.txt": b"D:\\data\\photos\\1.jpg\n/home/me/photos/2.jpg\n",
             "photos/1.jpg": b"1", "photos/1.txt": b"one",
             "photos/2.jpg": b"2", "photos/2.txt": b"two"}  # fmt: skip
    write_files(tmp_path, files)
    found = read("folder", tmp_path / "lists/train.txt", images=str(tmp_path / "photos"))
    assert list(found.stored.values()) == [(b"1", ["one"]), (b"2", ["two"])]
    assert found.problems == []


def test_an_image_of_a_list_that_is_not_there_is_missing(tmp_path, tools):
    picture = tools.encoded(tools.picture(0))
    write_files(
        tmp_path,
        {"t.txt": b"1.jpg\n2.jpg\n3.jpg\n", "1.jpg": picture, "1.txt": b"one", "2.txt": b"x"},
    )
    source = open_source("folder", SourceRequest(str(tmp_path / "t.txt")))
    with pytest.raises(SourceError, match=r"2 of 3 images are missing: 2\.jpg, 3\.jpg"):
        build(source, str(tmp_path / "o"), BuildOptions())


def test_other_files_are_answered(tmp_path, read):
    write_files(tmp_path, {"a.tar": tar_of(PAIRS), "a.jpg": b"A"})
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
def test_tables_of_r_have_a_cell_more_than_their_header(tmp_path, read, table):
    """stat.ethz.ch/R-manual/R-devel/library/utils/html/write.table.html, "CSV files"."""
    write_files(tmp_path, {"t.csv": R_TABLES[table].encode(), "a.jpg": b"A", "b.jpg": b"B"})
    found = read("csv", tmp_path / "t.csv")
    assert found.stored == {"a.jpg": (b"A", ['A dog, in "snow".']), "b.jpg": (b"B", ["Two cats."])}
    assert found.problems == []
    assert ("as R writes the names of rows" in found.notes) == (table != "no names")


def test_a_delimiter_too_much_is_no_table_of_r(tmp_path, read):
    write_files(tmp_path, {"t.csv": b"image,caption\na.jpg,A dog, in snow\nb.jpg,A cat, at home\n",
                   "a.jpg": b"A", "b.jpg": b"B"})  # fmt: skip
    found = read("csv", tmp_path / "t.csv")
    assert found.stored == {}
    assert len(found.problems) == 2
    assert all("must be quoted" in detail for _, detail in found.reasons)


def test_features_of_butd_are_named_where_another_source_meets_them(tmp_path, read):
    line = "\t".join(["150367", "640", "480", "2", "A" * 40, "B" * 40])
    write_files(tmp_path, {"trainval.tsv.0": f"{line}\n{line}\n".encode()})
    with pytest.raises(SourceError, match="are read with --source butd"):
        read("csv", tmp_path / "trainval.tsv.0")
    with pytest.raises(SourceError, match="may be --source butd's"):
        read("precomp", tmp_path)
