"""Splits that a folder declares in a file, and COCO's format under other names."""

from __future__ import annotations

import json
import time

import pytest
from archives import tar_of, write_files

from vse_shards.errors import SourceError
from vse_shards.sources import Row
from vse_shards.sources.registry import SourceRequest, open_source


def splits_of(kind, path, **request):
    source = open_source(kind, SourceRequest(str(path), **request))
    rows = [row for row in source.rows() if isinstance(row, Row)]
    return {str(row.image_id): row.split for row in rows}, source.notes.lines(source.name)


@pytest.fixture
def tars(tmp_path):
    """Write tars of one sample each, and a text beside them; gives the folder."""

    def write(names, file="", text=""):
        files = {name: tar_of({"k.jpg": b"x", "k.txt": b"x"}) for name in names}
        return write_files(tmp_path / "in", files | ({file: text.encode()} if file else {}))

    return write


SPLIT_YAML = ".nv-meta/split.yaml"
ENERGON = "exclude: [{}]\nsplit_parts:\n  train: [{}]\n  val:\n  - shard_1.tar\n  test: []\n"


LEFT = f"passed over 2 files that {SPLIT_YAML} names for no split, the first shard_0.tar"
EXCLUDED = f"passed over 1 samples that {SPLIT_YAML} excludes, the first shard_2.tar/k"


@pytest.mark.parametrize(
    ("excluded", "train", "expected", "said"),
    [
        ("", "shard_0.tar, 'shard_{2..3}.tar'", {0: "train", 2: "train", 3: "train"}, None),
        ("shard_0.tar", "shard_0.tar, shard_2.tar", {2: "train"}, LEFT),
        ("shard_2.tar/k", "'shard_{0,2,3}.tar'", {0: "train", 3: "train"}, EXCLUDED),
    ],
)
def test_energons_split_yaml(tars, excluded, train, expected, said):
    """As energon prepare writes it (NVIDIA/Megatron-Energon, docs on the dataset's preparation)."""
    names = [f"shard_{n}.tar" for n in range(4)]
    folder = tars(names, SPLIT_YAML, ENERGON.format(excluded, train))
    found, notes = splits_of("webdataset", folder)
    assert found == {f"shard_{n}/k": s for n, s in (expected | {1: "val"}).items()}
    assert f"split val: 1 file, the first shard_1.tar ({SPLIT_YAML} says so)" in notes
    assert [line for line in notes if line.startswith("passed over")] == ([said] if said else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split_parts: {train: [absent.tar]}", "lists absent.tar, which is not in the folder"),
        ("split_parts: {train: [a.tar], val: [a.tar]}", "lists a.tar for train and val"),
        ("split_parts: {train: ['{1..99999999999}.tar']}", "stands for 99,999,999,999 files"),
        ("split_parts: 3", "has no split_parts"),
        ("{", "is not YAML: line"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
        ("a: &a [x]\nb: [*a, *a]", "has no split_parts"),
        ("a: &a [*a]", "an alias leads to what holds it"),
        ("[" * 50_000, "nested|nesting"),
        ("a: " + "x" * (4 << 20), "limit 4,194,304"),
    ],
)
def test_a_bad_split_yaml_is_one_quick_line(tars, text, message):
    folder = tars(["a.tar"], SPLIT_YAML, text)
    started = time.process_time()
    with pytest.raises(SourceError, match=message) as error:
        splits_of("webdataset", folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(folder))
    assert time.process_time() - started < 5, "seconds"


CARD = """---
license: mit
configs:
- config_name: other
  data_files: "extra/*.tar"
- config_name: default
  data_files:
  - split: train
    path: data/a-*
  - split: validation
    path:
    - data/b-*
    - held/
---
# About
"""


def test_the_configs_of_a_dataset_card(tars):
    """huggingface.co/docs/hub/datasets-manual-configuration has folders and lists like these."""
    names = ["data/a-0.tar", "data/b-0.tar", "held/deep/test.tar", "extra/x.tar"]
    folder = tars(names, "README.md", CARD)
    found, notes = splits_of("webdataset", folder)
    assert found == {
        "data/a-0/k": "train",
        "data/b-0/k": "validation",
        "held/deep/test/k": "validation",
    }
    assert "passed over 1 files that README.md names for no split, the first extra/x.tar" in notes
    assert "README.md has 2 configs; splits are those of default" in notes


@pytest.mark.parametrize(
    "card",
    ["# About", "---\nlicense: mit\n---\n", "---\n{\n---\n", "---\nconfigs: 3\n---\n",
     "---\nconfigs:\n- data_files: [{split: train, path: other/*}]\n---\n",
     "---\nconfigs:\n- data_files: [{split: 1}, {path: 2}, 3]\n---\n",
     "---\na: &a 1\nb: *a\n---\n", "---\nunfinished"],
)  # fmt: skip
def test_a_card_that_says_nothing_of_the_files_leaves_it_to_their_names(tars, card):
    found, _ = splits_of("webdataset", tars(["val-0.tar", "x.tar"], "README.md", card))
    assert found == {"val-0/k": "val", "x/k": "train"}


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [("**", "ab"), ("data/**", "ab"), ("data/*", "a"), ("data", "ab"), ("data/**/y.tar", "b"),
     ("*.tar", ""), ("data/[a-x].tar", "a"), ("./data/x.tar", "a"), ("**/**/**/y.tar", "b")],
)  # fmt: skip
def test_patterns_are_those_of_datasets(tars, pattern, fits):
    card = f"---\nconfigs:\n- data_files: [{{split: test, path: '{pattern}'}}]\n---\n"
    found, _ = splits_of("webdataset", tars(["data/x.tar", "data/deep/y.tar"], "README.md", card))
    named = {"data/x/k": "a", "data/deep/y/k": "b"}
    assert {named[key] for key, split in found.items() if split == "test"} == set(fits)


def test_a_folder_of_pictures_follows_its_card(tmp_path, tools):
    for name in ("one/a.jpg", "two/b.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(tools.encoded(tools.picture(0)))
        path.with_suffix(".txt").write_text("w")
    card = "---\nconfigs:\n- data_files: {train: one/*, test: two/*}\n---\n"
    (tmp_path / "in" / "README.md").write_text(card)
    found, _ = splits_of("folder", tmp_path / "in")
    assert found == {"one/a.jpg": "train", "two/b.jpg": "test"}


def coco(*ids):
    return json.dumps(
        {
            "images": [{"id": n, "file_name": f"{n}.jpg"} for n in ids],
            "annotations": [{"id": n, "image_id": n, "caption": "w"} for n in ids],
        }
    )


def test_cocos_format_under_other_names(tmp_path):
    """STAIR captions, nocaps and VizWiz-Captions, as they are published."""
    files = {
        "stair_captions_v1.2_train.json": coco(1),
        "stair_captions_v1.2_val.json": coco(2),
        "vizwiz/val.json": coco(3),
        "vizwiz/annotations/test/x.json": coco(4),
        "instances_val.json": '{"images": [], "annotations": [{"bbox": []}]}',
        "._x.json": coco(9),
        "list.json": "[]",
    }
    for name, text in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    found, notes = splits_of("coco", tmp_path / "in")
    assert found == {"1": "train", "2": "val", "3": "val", "4": "test"}
    line = "passed over 2 .json files without captions as COCO has them, the first "
    assert f"{line}instances_val.json" in notes
    alone, _ = splits_of("coco", tmp_path / "in" / "stair_captions_v1.2_val.json")
    assert alone == {"2": "val"}


def test_a_folder_without_coco_captions_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SourceError, match=r"has no captions_\*\.json, nor another \.json"):
        splits_of("coco", tmp_path)


def test_tables_that_macos_left_are_not_read(tmp_path):
    (tmp_path / "._a.csv").write_bytes(b"\0\5\x16\7")
    (tmp_path / "val.csv").write_text("image,caption\na.jpg,w\n")
    found, _ = splits_of("csv", tmp_path)
    assert found == {"a.jpg": "val"}


def test_tables_take_the_splits_of_a_card(tmp_path):
    """As huggingface.co/docs/hub/datasets-manual-configuration has it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/a*.csv\n  - split: validation\n    path: [data/b.csv]\n---\n# Data\n"
    )
    tables = {"a1": "1.jpg,one", "a2": "2.jpg,two", "b": "3.jpg,three", "train_old": "4.jpg,four"}
    for name, row in tables.items():
        (tmp_path / f"data/{name}.csv").write_text(f"image,caption\n{row}\n")
    (tmp_path / "data/a2.csv").write_text("image,caption,split\n2.jpg,two,test\n5.jpg,five,\n")
    source = open_source("csv", SourceRequest(str(tmp_path)))
    found = {row.captions[0].text: row.split for row in source.rows() if isinstance(row, Row)}
    assert found == {"one": "train", "two": "test", "five": "train", "three": "validation"}
    notes = " | ".join(source.notes.lines("in"))
    assert "split validation: 1 file, the first data/b.csv (README.md says so)" in notes
    assert "1 files that README.md names for no split, the first data/train_old.csv" in notes
