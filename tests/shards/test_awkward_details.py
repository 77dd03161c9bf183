"""Details in which layouts of one kind differ: numbered columns, encoders, escapes, sidecars."""

from __future__ import annotations

import base64
import io
import json
import shlex
import tarfile
import textwrap

import pytest

from vse_shards.command_options import read_columns
from vse_shards.errors import SourceError
from vse_shards.sources import Problem, Row
from vse_shards.sources.base import usable_captions
from vse_shards.sources.registry import SourceRequest, open_source


def read(kind, path, **request):
    source = open_source(kind, SourceRequest(str(path), **request))
    found = list(source.rows())
    rows = {r.image_id: [c.text for c in r.captions] for r in found if isinstance(r, Row)}
    problems = [(p.reason, p.detail) for p in found if isinstance(p, Problem)]
    return rows, problems, " | ".join(source.notes.lines(source.name))


def chosen(message):
    """Columns of the command that a message names."""
    return read_columns([shlex.split(message.partition("--column ")[2].partition(" | ")[0])[0]])


def test_numbered_columns_of_captions_are_named_with_the_switch_that_reads_them(tmp_path):
    """Of a column a caption, one was read without a word, or none."""
    (tmp_path / "1.jpg").write_bytes(b"1")
    table = tmp_path / "t.csv"
    table.write_text("image,caption_0,caption_1\n1.jpg,one a,two b\n")
    with pytest.raises(SourceError, match="2 numbered ones; read them with --column") as error:
        read("csv", table)
    rows, _, _ = read("csv", table, columns=chosen(str(error.value)))
    assert rows == {"1.jpg": ["one a", "two b"]}
    table.write_text("image,caption,caption_1,caption 2\n1.jpg,one a,two b,three c\n")
    rows, _, notes = read("csv", table)
    assert rows == {"1.jpg": ["one a"]}
    assert "caption_1, caption 2 may hold captions too, and are not read" in notes
    rows, _, notes = read("csv", table, columns=chosen(notes))
    assert rows == {"1.jpg": ["one a", "two b", "three c"]}
    assert "not read" not in notes


PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 2


@pytest.mark.parametrize(
    "written",
    [
        base64.b64encode(PICTURE).decode(),
        "\n".join(textwrap.wrap(base64.b64encode(PICTURE).decode(), 76)),  # encodebytes, base64(1)
        base64.urlsafe_b64encode(PICTURE).decode(),
        base64.b64encode(PICTURE).decode().rstrip("="),
        "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode(),
    ],
)
def test_images_in_cells_of_all_encoders(tmp_path, written):
    """RFC 2045 breaks lines, RFC 4648 has an alphabet for URLs, and padding may be left out."""
    row = {"image": written, "image_id": 1, "caption": "a dog"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    source = open_source("jsonl", SourceRequest(str(tmp_path / "t.jsonl")))
    (found,) = [row for row in source.rows() if isinstance(row, Row)]
    with open(found.image.path, "rb") as file:
        file.seek(found.image.offset)
        assert file.read(found.image.size) == PICTURE


def test_escaped_names_are_found(tmp_path):
    """Tools of the web export names as URLs have them."""
    for name in ("a b.jpg", "100%.jpg", "c%20d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    names = ["a%20b.jpg", "100%25.jpg", "c%20d.jpg", "none%20.jpg"]
    lines = [json.dumps({"image": name, "caption": "x y"}) + "\n" for name in names]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    source = open_source("jsonl", SourceRequest(str(tmp_path / "t.jsonl")))
    found = [row.image.path.rpartition("/")[2] for row in source.rows() if isinstance(row, Row)]
    assert found == ["a b.jpg", "100%.jpg", "c%20d.jpg", "none%20.jpg"]
    notes = source.notes.lines("t")
    assert "images are found with escapes such as %20 decoded: a%20b.jpg is a b.jpg" in notes


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        # facebookresearch/vilbert-multi-task#24: "caption": ["author", ":", "a", "life", ...]
        (["author", ":", "a", "life", "in", "photography"], "malformed row"),
        (["a dog", "zero\0byte"], "malformed caption"),
        (["a dog", None], "malformed caption"),
    ],
)
def test_captions_that_are_none(texts, reason):
    _, problems = usable_captions(texts, None, origin="t", key=1, split="train")
    assert problems[0].reason == reason


@pytest.mark.parametrize("texts", [["dog", "snow", "run"], ["A dog .", "Snow ."], ["!", "?"]])
def test_captions_of_one_word_stay(texts):
    captions, problems = usable_captions(texts, None, origin="t", key=1, split="train")
    assert [caption.text for caption in captions] == texts
    assert problems == []


def test_files_without_a_split_among_those_with_one_are_counted(tmp_path):
    """Detectron's minival and RefCOCO's testA came to train without a word."""
    for name in ("train_a", "minival", "other", "val"):
        (tmp_path / f"{name}.csv").write_text(f"image,caption\n{name}.jpg,a b\n")
    _, _, notes = read("csv", tmp_path)
    assert "split train: 3 files" in notes
    assert "of these 2 files name no split, the first minival.csv: train is assumed" in notes


def test_a_sample_with_other_texts_names_them(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, data in (("a.jpg", b"A"), ("a.caption", b"x"), ("a.cls", b"3")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    _, problems, _ = read("webdataset", tmp_path / "t.tar")
    assert problems == [("no caption", "it has no .txt or .json, but .caption, .cls")]
