"""Details in which layouts of one kind differ: numbered columns, encoders, escapes, sidecars."""

from __future__ import annotations

import base64
import json
import shlex
import textwrap

import pytest
from archives import tar_of

from vse_shards.command_options import read_columns
from vse_shards.errors import SourceError
from vse_shards.sources.base import usable_captions


def chosen(message):
    """Columns of the command that a message names."""
    return read_columns([shlex.split(message.partition("--column ")[2].partition(" | ")[0])[0]])


def test_numbered_columns_of_captions_are_named_with_the_switch_that_reads_them(tmp_path, read):
    """Of a column a caption, one was read without a word, or none."""
    (tmp_path / "1.jpg").write_bytes(b"1")
    table = tmp_path / "t.csv"
    table.write_text("image,caption_0,caption_1\n1.jpg,one a,two b\n")
    with pytest.raises(SourceError, match="2 numbered ones; read them with --column") as error:
        read("csv", table)
    found = read("csv", table, columns=chosen(str(error.value)))
    assert found.captions == {"1.jpg": ["one a", "two b"]}
    table.write_text("image,caption,caption_1,caption 2\n1.jpg,one a,two b,three c\n")
    found = read("csv", table)
    assert found.captions == {"1.jpg": ["one a"]}
    assert "caption_1, caption 2 may hold captions too, and are not read" in found.notes
    found = read("csv", table, columns=chosen(found.notes))
    assert found.captions == {"1.jpg": ["one a", "two b", "three c"]}
    assert "not read" not in found.notes


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
def test_images_in_cells_of_all_encoders(tmp_path, read, written):
    """RFC 2045 breaks lines, RFC 4648 has an alphabet for URLs, and padding may be left out."""
    row = {"image": written, "image_id": 1, "caption": "a dog"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    assert read("jsonl", tmp_path / "t.jsonl").stored == {1: (PICTURE, ["a dog"])}


def test_escaped_names_are_found(tmp_path, read):
    """Tools of the web export names as URLs have them."""
    for name in ("a b.jpg", "100%.jpg", "c%20d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    names = ["a%20b.jpg", "100%25.jpg", "c%20d.jpg", "none%20.jpg"]
    lines = [json.dumps({"image": name, "caption": "x y"}) + "\n" for name in names]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    found = read("jsonl", tmp_path / "t.jsonl")
    paths = [row.image.path.rpartition("/")[2] for row in found.rows]
    assert paths == ["a b.jpg", "100%.jpg", "c%20d.jpg", "none%20.jpg"]
    assert "images are found with escapes such as %20 decoded: a%20b.jpg is a b.jpg" in found.notes


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


def test_files_without_a_split_among_those_with_one_are_counted(tmp_path, read):
    """Detectron's minival and RefCOCO's testA came to train without a word."""
    for name in ("train_a", "minival", "other", "val"):
        (tmp_path / f"{name}.csv").write_text(f"image,caption\n{name}.jpg,a b\n")
    notes = read("csv", tmp_path).notes
    assert "split train: 3 files" in notes
    assert "of these 2 files name no split, the first minival.csv: train is assumed" in notes


def test_a_sample_with_other_texts_names_them(put, read):
    path = put("t.tar", tar_of({"a.jpg": b"A", "a.caption": b"x", "a.cls": b"3"}))
    assert read("webdataset", path).reasons == [
        ("no caption", "it has no .txt or .json, but .caption, .cls")
    ]
