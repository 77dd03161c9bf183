"""What rows may name: nothing outside the folder of the images, unless the user says so.

After reports of chained URLs that run code (fsspec before 2026.6.0 renders a reference
specification as a template), of kerchunk's references, which lead to any protocol
(fsspec/kerchunk#132), and of data sets whose files are links into a cache
(huggingface/huggingface_hub#1240 and #1388).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vse_shards import reach, storage
from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.threshold import RejectLimit


@pytest.fixture
def place(tmp_path, tools):
    """A folder of images beside a secret picture, with links in, out and in a circle."""
    images = tmp_path / "set/images"
    images.mkdir(parents=True)
    (images / "good.jpg").write_bytes(tools.encoded(tools.picture(1)))
    secret = tools.encoded(tools.picture(2))
    (tmp_path / "secret.jpg").write_bytes(secret)
    (tmp_path / "set/images-more").mkdir()
    (tmp_path / "set/images-more/x.jpg").write_bytes(secret)
    (images / "inner.jpg").symlink_to("good.jpg")
    (images / "leaves.jpg").symlink_to("../../secret.jpg")
    (images / "folder").symlink_to(tmp_path)
    (images / "circle.jpg").symlink_to("circle.jpg")
    return images


class Contacted(MemoryFileSystem):
    """A storage that must not hear of anything."""

    protocol = "contacted"

    def _refuse(self, *_a, **_k):
        raise AssertionError("was contacted")

    info = ls = cat_file = exists = open = _refuse


@pytest.fixture
def contacted():
    fsspec.register_implementation("contacted", Contacted, clobber=True)


OUT = [
    "../../secret.jpg",
    "x/../../../secret.jpg",
    "../images-more/x.jpg",
    "{tmp}/secret.jpg",
    "/etc/passwd",
    "file://{tmp}/secret.jpg",
    "file://{tmp}/set/images/good.jpg",
    "contacted://host/x.jpg",
    "ftp://user:hunter2@host/x.jpg",
    "http://user:hunter2@127.0.0.1:9/x.jpg",
    "nosuch://x.jpg",
    "leaves.jpg",
    "folder/secret.jpg",
    "simplecache::contacted://host/x.jpg",
    'reference://x.jpg::data:,{{"templates": {{"u": "{{{{ 1 }}}}"}}}}/x.jpg',
]


@pytest.mark.parametrize(
    ("kind", "at"),
    [("jsonl", 0), ("csv", 0), ("karpathy", 0), ("coco", 0), *(("coco", -n) for n in range(1, 9))],
)
def test_a_row_that_names_a_file_outside_is_a_reject(kind, at, place, tmp_path, contacted, capsys):
    """COCO's reader looks for its folder of images by the first name, whatever that is."""
    names = ["good.jpg", *(name.format(tmp=tmp_path) for name in OUT)]
    names = names[at:] + names[:at]
    path = tmp_path / "ann" / ("captions_train2014.json" if kind == "coco" else "rows")
    path.parent.mkdir()
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"image": n, "captions": ["w"]}) + "\n" for n in names))
    elif kind == "csv":
        cells = ('"' + name.replace('"', '""') + '"' for name in names)
        path.write_text("image,caption\n" + "".join(f"{cell},words\n" for cell in cells))
    elif kind == "karpathy":
        sentences = [{"raw": "words"}]
        entries = [
            {"imgid": number, "split": "train", "filename": name, "sentences": sentences}
            for number, name in enumerate(names)
        ]
        path.write_text(json.dumps({"images": entries}))
    else:
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        notes = [{"image_id": n, "id": n, "caption": "words"} for n in range(len(names))]
        path.write_text(json.dumps({"images": images, "annotations": notes}))
    out = tmp_path / "out"
    source = open_source(kind, SourceRequest(str(path), str(place)))
    summary = build(source, str(out), BuildOptions(max_rejects=RejectLimit.parse("99")))

    assert (summary.images, summary.rejects) == (1, {"outside": len(OUT)})
    kept = (out / "rejects.jsonl").read_text()
    said = capsys.readouterr().err
    assert "hunter2" not in kept
    assert "hunter2" not in said
    assert "--allow-outside" in said
    secret = (tmp_path / "secret.jpg").read_bytes()
    assert secret not in (out / "train-000000.tar").read_bytes()
    assert max(len(json.loads(line)["detail"]) for line in kept.splitlines()) < 200


def test_what_is_inside_is_read_as_before(place, tmp_path):
    alias = tmp_path / "alias"
    alias.symlink_to(place)
    names = ["good.jpg", "./inner.jpg", f"{place}/good.jpg", "sub/../good.jpg", "a::b.jpg"]
    (place / "sub").mkdir()
    (place / "a::b.jpg").write_bytes((place / "good.jpg").read_bytes())
    for folder in (str(place), str(alias), f"{alias}/"):
        for name in names:
            path = storage.locate(folder, name)
            assert not reach.is_outside(path), (folder, name)
            assert storage.file_size(path) == (place / "good.jpg").stat().st_size
    assert not reach.is_outside(storage.locate(str(place), "circle.jpg"))
    assert storage.file_size(storage.locate(str(place), "circle.jpg")) == -1


def test_the_links_of_a_hugging_face_cache_are_followed(tmp_path, tools):
    repository = tmp_path / "datasets--a--b"
    snapshot = repository / "snapshots/0123/images"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs/abc").write_bytes(tools.encoded(tools.picture(1)))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    (snapshot / "1.jpg").symlink_to("../../../blobs/abc")
    (snapshot / "2.jpg").symlink_to("../../../refs/main")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"image": f"{n}.jpg", "captions": ["w"]}) + "\n" for n in (1, 2))
    )
    summary = build(
        open_source("jsonl", SourceRequest(str(rows), str(snapshot))),
        str(tmp_path / "out"),
        BuildOptions(),
    )

    assert (summary.images, summary.rejects) == (1, {"outside": 1})


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a.jpg", True),
        ("s3://bucket/images/a.jpg", True),
        ("s3://bucket/images/../a.jpg", False),
        ("s3://bucket/images/%2e%2e/a.jpg", False),
        ("../a.jpg", False),
        ("%2e%2e/%2E./a.jpg", False),
        ("s3://bucket/images-more/a.jpg", False),
        ("s3://other/images/a.jpg", False),
        ("http://bucket/images/a.jpg", False),
        ("a.jpg::memory://b", False),
        ("/etc/passwd", False),
        ("x//a.jpg", True),
    ],
)
def test_a_url_reaches_only_below_the_one_that_was_named(name, allowed):
    for folder in ("s3://bucket/images", "s3://bucket/images/"):
        assert reach.is_outside(storage.locate(folder, name)) is not allowed


def test_both_remedies_that_the_line_names_work(tmp_path, tools, command):
    """A list of absolute paths without ``--images`` was read wherever they led."""
    folder = tmp_path / "photos"
    rows = tmp_path / "lists/rows.jsonl"
    rows.parent.mkdir()
    names = [folder / "a/1.jpg", folder / "b/2.jpg"]
    for number, path in enumerate(names):
        path.parent.mkdir(parents=True)
        path.write_bytes(tools.encoded(tools.picture(number)))
    rows.write_text("".join(json.dumps({"image": str(p), "captions": ["w"]}) + "\n" for p in names))
    start = ["build", "--source", "jsonl", "--input", rows, "--workers", "1", "--out"]
    refused = command(*start, tmp_path / "no")
    lines = refused.stderr.splitlines()
    line = next(line for line in lines if "--allow-outside" in line)

    assert refused.returncode == 2
    assert f"--images {folder}, or --allow-outside" in line
    assert "none of its rows can be used" in lines[-1]
    built = []
    for number, remedy in enumerate((["--images", folder], ["--allow-outside"])):
        done = command(*start, tmp_path / f"out{number}", *remedy)
        assert done.returncode == 0, done.stderr
        built.append(tools.digests(tmp_path / f"out{number}"))
    assert built[0] == built[1]


def test_web_addresses_are_named_as_such(tmp_path, command):
    path = tmp_path / "gcc.tsv"
    path.write_text("caption\turl\n" + "a dog\thttp://127.0.0.1:9/p/0.jpg\n" * 4)
    done = command(
        "build", "--source", "csv", "--input", path, "--column", "image=url",
        "--out", tmp_path / "out", "--workers", "1",
    )  # fmt: skip

    assert done.returncode == 2
    assert "web address" in done.stderr.splitlines()[-1]
    assert "img2dataset" in done.stderr.splitlines()[-1]


def test_no_chained_protocol_is_opened_whoever_names_it(tmp_path, command):
    (tmp_path / "x.jsonl").write_text("")
    for chained in ("simplecache::memory://x.jsonl", "reference://x::memory://y"):
        done = command("build", "--source", "jsonl", "--input", chained, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert "chained protocols are not opened" in done.stderr


def test_a_file_outside_is_read_when_asked(place, tmp_path, contacted):
    rows = tmp_path / "rows.jsonl"
    names = [
        "good.jpg",
        "../../secret.jpg",
        "nosuch://bucket/x.jpg",
        "a::contacted://x",
        "leaves.jpg",
    ]
    rows.write_text("".join(json.dumps({"image": n, "captions": ["w"]}) + "\n" for n in names))
    source = open_source("jsonl", SourceRequest(str(rows), str(place)))
    summary = build(source, str(tmp_path / "out"), BuildOptions(allow_outside=True))

    assert summary.images == 3
    assert summary.rejects == {"unreadable": 1, "outside": 1}


def test_no_byte_of_a_file_is_in_a_message(tmp_path, tools, command):
    """A reject once showed the first 16 bytes of a file that is no image."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(tools.encoded(tools.picture(1)))
    (folder / "b.jpg").write_bytes(b"PASSWORD=hunter2\n" * 9)
    for stem in "ab":
        (folder / f"{stem}.txt").write_text("words")
    done = command(
        "build", "--source", "folder", "--input", folder, "--out", tmp_path / "out",
        "--workers", "1",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    kept = (tmp_path / "out/rejects.jsonl").read_text()
    assert "not an image" in kept
    assert "PASSWORD" not in kept
    assert "PASSWORD" not in done.stderr
    assert b"PASSWORD".hex() not in kept


def test_a_link_out_of_a_folder_of_pairs_is_a_reject(tmp_path, tools):
    folder = Path(tmp_path / "in")
    folder.mkdir()
    (tmp_path / "passport.jpg").write_bytes(tools.encoded(tools.picture(1)))
    (folder / "a.jpg").write_bytes(tools.encoded(tools.picture(2)))
    os.symlink("../passport.jpg", folder / "b.jpg")
    for stem in "ab":
        (folder / f"{stem}.txt").write_text("words")
    summary = build(
        open_source("folder", SourceRequest(str(folder))), str(tmp_path / "out"), BuildOptions()
    )

    assert (summary.images, summary.rejects) == (1, {"outside": 1})


def test_where_all_rows_lead_out_the_error_names_the_remedy(tmp_path, tools):
    """A folder of photos that is a link to another disk, as people have it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.jpg").write_bytes(tools.encoded(tools.picture(1)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos").symlink_to(tmp_path / "disk")
    rows = tmp_path / "mine" / "rows.jsonl"
    rows.write_text('{"image": "photos/a.jpg", "captions": ["words"]}\n')
    source = open_source("jsonl", SourceRequest(str(rows)))
    with pytest.raises(SourceError, match=r"none of its rows .*; read them with --allow-outside$"):
        build(source, str(tmp_path / "out"), BuildOptions())
    source = open_source("jsonl", SourceRequest(str(rows)))
    assert build(source, str(tmp_path / "out"), BuildOptions(allow_outside=True)).images == 1
