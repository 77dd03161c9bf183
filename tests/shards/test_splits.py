"""Split words in names: which count, where, and that nothing becomes a split in silence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vse_shards.notes import MAX_NAME, Notes, shown
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.sources.splits import SPLIT_WORDS, find_split

WORDS = st.sampled_from(sorted(SPLIT_WORDS))
# Letters around delimiters, of which none makes a split word.
OTHERS = st.sampled_from(["", "cc3m", "wds", "shard", "COCO", "x", "中文", "00000", "2014", "v1.2"])
DELIMITERS = st.sampled_from(["-", "_", ".", " ", "--", "_0", "7", "-2014-", "="])


@st.composite
def cased(draw, words=WORDS):
    return "".join(
        draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in draw(words)
    )


@given(OTHERS, DELIMITERS, cased(), DELIMITERS, OTHERS, st.sampled_from(["", ".tar", ".jsonl"]))
def test_a_word_between_delimiters_counts_in_any_case(before, left, word, right, after, suffix):
    found = find_split(f"some/where/{before}{left}{word}{right}{after}{suffix}")
    expected = "train" if word.lower() == "training" else word.lower()
    assert found == (expected, f'"{expected}" in its name')


@given(cased(), st.sampled_from("aAzZéß中"), st.booleans())
def test_a_word_within_another_does_not_count(word, letter, before):
    name = letter + word if before else word + letter
    if name.lower() in SPLIT_WORDS:
        return
    assert find_split(f"{name}/{name}-0000.tar") is None


@pytest.mark.parametrize(
    "name",
    ["trainset_of_trains", "evaluation", "protest", "latest", "devices", "contrast", "trains",
     "testing", "restaurant", "interval", "tested", "trainer", "developer", "invalid", "trainval"],
)  # fmt: skip
def test_longer_words_are_no_splits(name):
    assert find_split(f"{name}/{name}-000.tar", name) is None


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("cc3m-validation-0000.tar", "validation"),
        ("test/0.tar", "test"),
        ("captions_train2014.json", "train"),
        ("instances/VAL2017/x.json", "val"),
        ("a/training/0.tar", "train"),
        # The file's name counts before its folders.
        ("val/cc3m-train-0000.tar", "train"),
        ("train/deep/val/0.tar", "val"),
        # Class folders of Places365 and ImageNet.
        ("val/train_station/0.tar", "val"),
        ("val/bullet_train/0.tar", "val"),
        # Of several words the last is the noun; some names are written with a delimiter.
        ("train-dev.jsonl", "dev"),
        ("captions_test-dev2015.json", "testdev"),
        ("coco_rest_val.json", "restval"),
        ("split=test/part-0.parquet", "test"),
    ],
)
def test_paths_that_people_have(path, split):
    found = find_split(path)
    assert found is not None
    assert found[0] == split


def test_the_reason_names_what_did_not_count():
    assert find_split("val/train_station/0.tar") == (
        "val",
        '"val" in folder val, which counts before folder train_station',
    )
    assert find_split("train-dev.jsonl") == ("dev", '"dev" after "train" in its name')


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("val", "val"),
        ("val2014", "val"),
        ("Test", "test"),
        ("my-test-run", None),
        ("eval2", "eval"),
    ],
)
def test_the_folder_that_is_the_input_counts_if_it_is_nothing_but_a_word(folder, split):
    found = find_split("00000.tar", folder)
    assert (found and found[0]) == split
    assert find_split("train/00000.tar", folder)[0] == "train"
    assert find_split("train-0.tar", folder)[0] == "train"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("COCO_val2014_000000000042.jpg", "val"),
        ("val_0042.jpg", "val"),
        ("test-7.png", "test"),
        # The name says what the picture shows.
        ("train.jpg", None),
        ("crash-test.jpg", None),
        ("steam_train_3.jpg", None),
        ("pregnancy test 12.jpg", None),
    ],
)
def test_names_of_pictures_may_say_what_they_show(name, split):
    found = find_split(f"photos/{name}", image=True)
    assert (found and found[0]) == split
    assert find_split(f"dev/{name}", image=True)[0] == (split or "dev")


def test_notes_say_each_line_once_and_count_files():
    notes = Notes()
    notes.split("train", "0.tar", None)
    notes.split("val", "val-0.tar", '"val" in its name')
    notes.split("val", "val-1.tar", '"val" in its name')
    notes.say("a line")
    notes.say("a line")
    assert notes.lines("in") == [
        "split train: 1 file, the first 0.tar (no split is named in it)",
        'split val: 2 files, the first val-0.tar ("val" in its name)',
        "a line",
    ]


def test_notes_say_that_no_split_was_recognised():
    notes = Notes()
    notes.split("train", "0.tar", None)
    (line,) = notes.lines("in")
    assert line.startswith("no split is named in in: all rows are train; carve images")


@given(st.text(max_size=400))
def test_names_are_shown_on_one_short_printable_line(text):
    found = shown(text)
    assert len(found) <= MAX_NAME
    assert found.isprintable() or "\u00a0" in found or not found.isascii()
    assert not {"\n", "\r", "\x1b", "\u2028"} & set(found)
    found.encode()


@pytest.fixture
def rows_without_split(tmp_path, tools):
    """The same two images as every source has them, in files that the test names."""
    folder = tmp_path / "in"

    def write(kind, name):
        for number in range(2):
            path = folder / "images" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tools.encoded(tools.picture(number)))
        path = folder / name
        if kind == "jsonl":
            text = "".join(
                json.dumps({"image": f"{n}.jpg", "captions": ["w"]}) + "\n" for n in "01"
            )
        elif kind == "csv":
            text = "image,caption\n0.jpg,w\n1.jpg,w\n"
        else:
            images = [{"id": n, "file_name": f"{n}.jpg"} for n in (0, 1)]
            notes = [{"id": n, "image_id": n, "caption": "w"} for n in (0, 1)]
            text = json.dumps({"images": images, "annotations": notes})
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("kind", ["jsonl", "csv", "coco"])
@pytest.mark.parametrize(
    ("stem", "split"), [("flickr_VALIDATION", "validation"), ("latest", "train")]
)
def test_a_file_without_a_split_column_takes_that_of_its_name(
    rows_without_split, kind, stem, split
):
    path = rows_without_split(kind, f"{stem}.{'json' if kind == 'coco' else kind}")
    source = open_source(kind, SourceRequest(str(path), images=str(path.parent / "images")))
    assert [row.split for row in source.rows()] == [split, split]
    (line,) = source.notes.lines(source.name)
    assert line == (
        f'split validation: 1 file, the first {path.name} ("validation" in its name)'
        if split == "validation"
        else f"no split is named in {path.name}: all rows are train; carve images to "
        "validate on out with --split val=5%, rename with --split NAME=train, or name splits in a "
        "file, a folder or a column"
    )


def test_the_build_prints_the_splits_and_the_remedy_works(rows_without_split, command, tmp_path):
    path = rows_without_split("jsonl", "rows.jsonl")
    build = ["build", "--source", "jsonl", "--input", path, "--workers", 1]
    ended = command(*build, "--out", tmp_path / "o", "--json")
    assert ended.returncode == 0, ended.stderr
    line = (
        "no split is named in rows.jsonl: all rows are train; carve images to validate on out with "
        "--split val=5%, rename with --split NAME=train"
    )
    assert line in ended.stderr
    note = json.loads(ended.stdout)["notes"][0]
    assert note.startswith(line)
    ended = command(*build, "--out", tmp_path / "o2", "--split", "val=train", "--json")
    assert list(json.loads(ended.stdout)["splits"]) == ["val"]
