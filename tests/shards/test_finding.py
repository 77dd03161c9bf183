"""Names of images as other machines, systems and releases wrote them.

What hurt people: absolute paths of the author's machine (salesforce/BLIP#218), Windows' separators
in a COCO path (matterport/Mask_RCNN#185), COCO's other years and folders
(tensorpack/tensorpack#1193, karpathy/neuraltalk2#131).
"""

from __future__ import annotations

import json
import unicodedata

import pytest

from vse_shards.errors import SourceError
from vse_shards.sources.finding import ImageFinder


@pytest.fixture
def folder(tmp_path):
    """Make empty files; gives a finder over them and the lines that it says."""

    def make(*names):
        for name in names:
            path = tmp_path / "images" / name
            folder = path if name.endswith("/") else path.parent
            folder.mkdir(parents=True, exist_ok=True)
            if path != folder:
                path.write_bytes(b"")
        (tmp_path / "images").mkdir(exist_ok=True)
        said = []
        return ImageFinder(str(tmp_path / "images"), said.append), said

    return make


def relative(path: str) -> str:
    return path.rpartition("/images/")[2]


NFD = unicodedata.normalize("NFD", "café.jpg")

FOUND = [
    ("sub/a.jpg", "sub\\a.jpg", "with / in place of"),
    ("a.jpg", ".\\a.jpg", "with / in place of"),
    (NFD, unicodedata.normalize("NFC", NFD), "Unicode"),
    (unicodedata.normalize("NFC", NFD), NFD, "Unicode"),
    ("Sub/A.JPG", "sub/a.jpg", "case"),
    ("train/a.jpg", "/home/alice/data/train/a.jpg", "end of their paths"),
    ("train/a.jpg", "C:\\Users\\alice\\train\\a.jpg", "end of their paths"),
    ("a.jpg", "https_mirror/x/a.jpg", "end of their paths"),
    ("deep/er/a.jpg", "a.jpg", "end of their paths"),
    ("COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg", "end of"),
    ("train2017/000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg", "COCO's id"),
    ("train2017/000000391895.jpg", "COCO_train2014_000000391895.jpg", "COCO's id"),
    ("val2014/COCO_val2014_000000522418.jpg", "train2017/000000522418.jpg", "COCO's id"),
    ("COCO_val2014_000000522418.jpg", "000000522418.jpg", "COCO's id"),
]


@pytest.mark.parametrize(("file", "name", "kind"), FOUND)
def test_an_image_is_found_under_another_spelling_and_it_is_said_once(folder, file, name, kind):
    finder, said = folder(file, "other/b.jpg")

    assert [relative(finder.find(name)) for _ in range(2)] == [file, file]
    (line,) = said
    assert kind in line
    assert file in line


MISSING = [
    # The folder of the row exists: an image of the same name in another folder is another picture.
    (["train/1.jpg", "val/2.jpg"], "val/1.jpg"),
    (["x/train/1.jpg", "x/val/2.jpg"], "/home/alice/val/1.jpg"),
    (["x/a/dog/1.jpg", "x/b/dog/2.jpg"], "/mnt/b/dog/1.jpg"),
    (["val/1.jpg", "empty/"], "empty/1.jpg"),
    (["val/1.jpg"], "train/1.jpg"),
    (["images/val2014/1.jpg"], "/data/train2014/1.jpg"),
    # Numbers of twelve digits that are not COCO's.
    (["a/000000000001.jpg", "b/000000000002.jpg"], "b/000000000001.jpg"),
    (["a.png"], "a.jpg"),
    ([], "a.jpg"),
]


@pytest.mark.parametrize(("files", "name"), MISSING)
def test_another_picture_of_the_same_name_is_not_taken(folder, files, name):
    finder, said = folder(*files)
    location, shown = finder.locate(name)

    assert location.path.endswith(name)
    assert shown == name
    assert said == []


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["x/a.jpg", "y/a.jpg"], "/home/alice/a.jpg"),
        (["A.jpg", "a.JPG"], "a.jpg"),
        (["train2017/000000000009.jpg", "val2017/000000000009.jpg"], f"COCO_val2014_{9:012d}.jpg"),
    ],
)  # fmt: skip
def test_of_several_files_none_is_taken_and_both_are_named(folder, files, name):
    finder, _ = folder(*files)
    location, shown = finder.locate(name)

    assert location.path.endswith(name)
    assert shown == f"{name} ({' or '.join(sorted(files))}?)"


def test_escapes_are_decoded_so_often_as_programs_escape_a_name(folder):
    """A name of many escapes ended the build with RecursionError."""
    for name in ("a%20b.jpg", "a%2520b.jpg"):
        finder, said = folder("a b.jpg", "b.jpg")
        assert relative(finder.find(name)) == "a b.jpg"
        assert "with escapes" in said[0]
    name = f"%{'25' * 1500}.jpg"
    assert finder.find(name).endswith(name)


def test_the_longest_common_end_decides(folder):
    finder, _ = folder("train/dog/1.jpg", "val/dog/1.jpg")

    assert relative(finder.find("/mnt/x/val/dog/1.jpg")) == "val/dog/1.jpg"


def test_a_file_is_not_taken_for_two_names(folder):
    finder, _ = folder("cat/1.jpg")
    assert relative(finder.find("dog/1.jpg")) == "cat/1.jpg"

    assert finder.find("bird/1.jpg").endswith("bird/1.jpg")
    with pytest.raises(SourceError, match=r"dog/1.jpg.*correct that name, or --images"):
        finder.find("cat/1.jpg")


def test_a_file_that_another_row_names_is_not_taken(folder):
    finder, said = folder("cat/1.jpg")
    assert relative(finder.find("cat/1.jpg")) == "cat/1.jpg"

    assert finder.find("dog/1.jpg").endswith("dog/1.jpg")
    assert said == []


def test_the_folder_is_not_listed_where_names_are_right(folder, monkeypatch):
    finder, _ = folder("a.jpg")
    monkeypatch.setattr("vse_shards.storage.walk", lambda _: pytest.fail("listed"))

    assert relative(finder.find("a.jpg")) == "a.jpg"


def test_karpathys_split_is_built_from_the_images_of_2017(tmp_path, tools, command):
    for number, name in enumerate(("train2017/000000391895.jpg", "val2017/000000522418.jpg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(tools.encoded(tools.picture(number)))
    images = [
        {"filepath": "val2014", "filename": f"COCO_val2014_{cocoid:012d}.jpg", "cocoid": cocoid,
         "split": split, "sentences": [{"raw": "words", "sentid": cocoid}]}
        for cocoid, split in ((391895, "test"), (522418, "restval"))
    ]  # fmt: skip
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    arguments = ["--source", "karpathy", "--input", tmp_path / "dataset_coco.json"]
    done = command("build", *arguments, "--out", tmp_path / "out", "--workers", 1)

    assert done.returncode == 0, done.stderr
    assert "by COCO's id: val2014/COCO_val2014_000000391895.jpg is train2017/" in done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.tar")} == {
        "restval-000000.tar",
        "test-000000.tar",
    }
