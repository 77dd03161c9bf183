"""Texts of a folder of images, as captioning tools and data sets write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source


def read(folder: Path, files: dict[str, bytes]) -> tuple[dict[Any, list[str]], list[str]]:
    """Return the captions by image that the folder's source gives, and the problems' details."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    found = list(open_source("folder", SourceRequest(str(folder))).rows())
    rows = [row for row in found if isinstance(row, Row)]
    details = [problem.detail for problem in found if isinstance(problem, Problem)]
    return {row.image_id: [c.text for c in row.captions] for row in rows}, details


def test_caption_files(tmp_path):
    """``.caption``, the default of kohya's scripts (kohya-ss/sd-scripts#1118)."""
    files = {"10_dog/1.png": b"1", "10_dog/1.caption": b"photo of a dog", "2.JPG": b"2",
             "2.CAPTION": b"two"}  # fmt: skip
    assert read(tmp_path, files) == ({"10_dog/1.png": ["photo of a dog"], "2.JPG": ["two"]}, [])


def test_text_wins_over_a_caption_file(tmp_path):
    files = {"1.png": b"1", "1.caption": b"tags", "1.txt": b"a dog"}
    assert read(tmp_path, files) == ({"1.png": ["a dog"]}, [])


def test_list_with_caption_files(tmp_path):
    files = {"1.png": b"1", "1.caption": b"one", "train.txt": b"1.png\n"}
    read(tmp_path, files)
    rows = list(open_source("folder", SourceRequest(str(tmp_path / "train.txt"))).rows())
    assert [row.captions[0].text for row in rows if isinstance(row, Row)] == ["one"]


@pytest.mark.parametrize("texts", ["text", "text_c10"])
def test_birds_and_flowers(tmp_path, texts):
    """Ten captions an image in ``text`` or ``text_c10`` (taoxugit/AttnGAN, reedscot/cvpr2016)."""
    files = {"images/001.Albatross/a_1.jpg": b"1",
             f"{texts}/001.Albatross/a_1.txt": b"a bird\nwhite wings\n"}  # fmt: skip
    captions, details = read(tmp_path, files)
    assert captions == {"images/001.Albatross/a_1.jpg": ["a bird", "white wings"]}
    assert details == []


def test_tables_of_hugging_face_are_named(tmp_path):
    """``metadata.jsonl`` in the folder: the message says which source reads it, and it does."""
    line = b'{"file_name": "1.jpg", "text": "one"}\n'
    files = {"train/1.jpg": b"1", "train/metadata.jsonl": line}
    captions, details = read(tmp_path, files)
    assert captions == {}
    assert details == [
        "there is no .txt beside it, but train/metadata.jsonl: --source jsonl with the "
        "same --input reads it"
    ]
    rows = list(open_source("jsonl", SourceRequest(str(tmp_path))).rows())
    assert [row.captions[0].text for row in rows if isinstance(row, Row)] == ["one"]
