"""Every layout, with real files where there are any."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from memory import forget_peak, peak_memory

from vse_shards.build import BuildOptions, build
from vse_shards.errors import SourceError
from vse_shards.index import read_index
from vse_shards.manifest import Manifest
from vse_shards.regions import forget_regions, read_regions
from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SOURCES, SourceRequest, open_source


def read(kind, **request):
    """Rows and problems of a source."""
    found = list(open_source(kind, SourceRequest(**request)).rows())
    return (
        [row for row in found if isinstance(row, Row)],
        [problem for problem in found if isinstance(problem, Problem)],
    )


def told(rows):
    """What rows say, without where it lies."""
    return [(r.split, r.image_id, [(c.id, c.text) for c in r.captions], r.name) for r in rows]


@pytest.fixture(autouse=True)
def _without_the_files_of_another_test() -> None:
    forget_regions()  # pytest may give the folder of a test that passed to the next


def make(kind, out, options=None, **request):
    return build(open_source(kind, SourceRequest(**request)), str(out), options or BuildOptions())


def stored(folder: Path):
    """Members of every sample, by image id."""
    found = {}
    for split in Manifest.load(folder).splits.values():
        for shard in split.shards:
            data = (folder / shard.name).read_bytes()
            index = read_index(folder / shard.index_name)
            for row in range(len(index)):
                members = {}
                for extension in index.extensions:
                    offset, size = index.place(row, extension)
                    if offset >= 0:
                        members[extension] = data[offset : offset + size]
                found[json.loads(members["json"])["image_id"]] = members
    return found


def array(data: bytes):
    return np.load(io.BytesIO(data))


@pytest.fixture
def photos(tmp_path, tools):
    """Four pictures in a folder; gives their bytes by name."""
    folder = tmp_path / "images"
    folder.mkdir()
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) for n in range(4)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


# jsonl


def test_jsonl_takes_other_names_of_ids_and_captions_as_objects(write_rows, photos, tmp_path):
    rows = [
        {"image": "0.jpg", "imgid": 7, "sentids": [70, 71], "captions": ["a", " b "]},
        {"image": "1.jpg", "image_id": "x", "captions": [{"id": 5, "text": "c"}], "split": "val"},
        {"image": "2.jpg", "captions": "one alone"},
    ]
    path = write_rows(rows, {})
    found, problems = read("jsonl", input=str(path), images=str(tmp_path / "images"))

    assert problems == []
    assert told(found) == [
        ("train", 7, [(70, "a"), (71, "b")], "0.jpg"),
        ("val", "x", [(5, "c")], "1.jpg"),
        ("train", "2.jpg", [(None, "one alone")], "2.jpg"),
    ]


def test_jsonl_columns_can_have_other_names(tmp_path, photos):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"file": "0.jpg", "words": ["w"], "fold": "val"}))
    columns = {"image": "file", "captions": "words", "split": "fold"}
    found, _ = read("jsonl", input=str(path), columns=columns)

    assert told(found) == [("val", "0.jpg", [(None, "w")], "0.jpg")]
    assert found[0].image.path == str(tmp_path / "images/0.jpg")


# karpathy


def test_karpathys_flickr8k_gives_the_same_files_as_its_jsonl(shared, tmp_path, tools):
    images = str(shared / "data/flickr8k/images")
    karpathy = str(shared / "data/karpathy/dataset_flickr8k.json")
    jsonl = str(shared / "data/flickr8k/captions.jsonl")
    only = BuildOptions(
        splits={"train": "train", "val": "val"}, allow_missing=True, shard_samples=500
    )
    make("karpathy", tmp_path / "k", only, input=karpathy, images=images)
    make("jsonl", tmp_path / "j", only, input=jsonl)

    def tars(folder):
        return {n: d for n, d in tools.digests(folder).items() if n.endswith((".tar", ".idx"))}

    assert len(tars(tmp_path / "j")) == 10
    assert tars(tmp_path / "k") == tars(tmp_path / "j")


def test_karpathys_coco_has_its_folders_ids_and_restval(tmp_path, photos):
    (tmp_path / "images/val2014").mkdir()
    (tmp_path / "images/0.jpg").rename(tmp_path / "images/val2014/0.jpg")
    entries = [
        {
            "filepath": "val2014", "filename": name, "split": split, "imgid": 0, "cocoid": cocoid,
            "sentences": [{"raw": f"of {cocoid}", "sentid": 10 * cocoid}],
        }
        for name, split, cocoid in (("0.jpg", "restval", 11), ("1.jpg", "train", 12))
    ]  # fmt: skip
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries}))
    joined = BuildOptions(splits={"train": "train", "restval": "train"})
    make("karpathy", tmp_path / "out", joined, input=str(path))

    samples = stored(tmp_path / "out")
    assert {i: m["jpg"] for i, m in samples.items()} == {11: photos["0.jpg"], 12: photos["1.jpg"]}
    assert json.loads(samples[11]["json"])["captions"] == [{"id": 110, "text": "of 11"}]


def test_karpathys_file_of_another_kind_is_refused(tmp_path, photos):
    (tmp_path / "x.json").write_text('{"annotations": []}')
    with pytest.raises(SourceError, match=r"has no list 'images'; is it a dataset_\*\.json"):
        read("karpathy", input=str(tmp_path / "x.json"))


# coco


def test_coco_annotations_keep_their_ids(tmp_path, photos):
    (tmp_path / "val2014").mkdir()
    for name in photos:
        (tmp_path / "images" / name).rename(tmp_path / "val2014" / name)
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": 5, "file_name": "0.jpg"}, {"id": 6, "file_name": "1.jpg"}],
        "annotations": [
            {"id": 90, "image_id": 5, "caption": "first"},
            {"id": 92, "image_id": 77, "caption": "of no image"},
            {"id": 91, "image_id": 5, "caption": "second\n"},
        ],
    }
    path = tmp_path / "annotations/captions_val2014.json"
    path.write_text(json.dumps(content))
    for given in (path, path.parent):
        found, problems = read("coco", input=str(given))
        assert told(found) == [("val", 5, [(90, "first"), (91, "second")], "0.jpg")]
        assert found[0].image.path == str(tmp_path / "val2014/0.jpg")
        assert [(p.key, p.reason) for p in problems] == [
            (77, "caption for no image"),
            (6, "no caption"),
        ]


def test_real_coco_photos_as_official_annotations(shared, tmp_path):
    sample = shared / "data/coco_sample"
    rows = [json.loads(line) for line in (sample / "captions.jsonl").open()]
    content = {
        "images": [{"id": r["image_id"], "file_name": r["image"]} for r in rows],
        "annotations": [
            {"id": i, "image_id": r["image_id"], "caption": c}
            for r in rows
            for i, c in zip(r["caption_ids"], r["captions"], strict=True)
        ],
    }
    (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
    make(
        "coco",
        tmp_path / "c",
        input=str(tmp_path / "captions_train2017.json"),
        images=str(sample / "images"),
    )
    make("jsonl", tmp_path / "j", input=str(sample / "captions.jsonl"))

    assert stored(tmp_path / "c") == stored(tmp_path / "j")


# precomp


def precomp(folder: Path, split, ids, captions, ims=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
    (folder / f"{split}_caps.txt").write_text("".join(f"{c}\n" for c in captions))
    if ims is not None:
        np.save(folder / f"{split}_ims.npy", ims)


def test_a_second_build_of_a_process_reads_the_regions_that_are_there_now(tmp_path):
    for value in (1.0, 2.0):  # in one test, so that nothing is forgotten between them
        ims = np.full((1, 2, 4), value, np.float32)
        (tmp_path / "precomp" / "dev_ims.npy").unlink(missing_ok=True)  # another file, as by a copy
        precomp(tmp_path / "precomp", "dev", [4], ["a caption"], ims)
        make("precomp", tmp_path / f"out-{value}", input=str(tmp_path))
        assert (array(stored(tmp_path / f"out-{value}")[4]["npy"]) == value).all()


@pytest.mark.parametrize("repeats", [1, 5])
def test_precomp_ids_name_an_image_once_or_for_every_caption(tmp_path, repeats):
    ids = np.repeat([31, 7, 12], repeats)
    captions = [f"caption {n}" for n in range(15)]
    ims = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    if repeats == 5:  # as dev and test have it, the features repeat too
        ims = np.repeat(ims, 5, axis=0)
    precomp(tmp_path / "precomp", "dev", ids, captions, ims)
    make("precomp", tmp_path / "out", input=str(tmp_path))

    samples = stored(tmp_path / "out")
    assert len(samples) == 3
    for number, image_id in enumerate((31, 7, 12)):
        description = json.loads(samples[image_id]["json"])
        assert [c["text"] for c in description["captions"]] == captions[5 * number :][:5]
        assert (description["width"], description["height"]) == (None, None)
        expected = ims[number * repeats]
        np.testing.assert_array_equal(array(samples[image_id]["npy"]), expected)


@pytest.mark.parametrize("saved", ["f2", "f8", ">f2", ">f4", ">f8", "Fortran"])
def test_precomp_regions_keep_their_values_however_they_were_saved(tmp_path, saved):
    regions = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("f4")
    ims = np.asfortranarray(regions) if saved == "Fortran" else regions.astype(saved)
    precomp(tmp_path / "precomp", "dev", [4, 9], [f"caption {n}" for n in range(10)], ims)
    make("precomp", tmp_path / "out", input=str(tmp_path))

    samples = stored(tmp_path / "out")
    for number, image_id in enumerate((4, 9)):
        found = array(samples[image_id]["npy"])
        np.testing.assert_array_equal(found, ims[number])
        assert found.dtype == ims.dtype.newbyteorder("=")
        assert found.dtype.isnative


@pytest.mark.parametrize(
    ("captions", "rows", "images", "first_of_second"),
    [(10, 2, 2, 5), (6, 6, 6, 1), (6, "each three times", 2, 3)],
)
def test_precomp_without_ids_is_numbered(tmp_path, captions, rows, images, first_of_second):
    """As SGRAF's followers ship it (Paranioar/SGRAF data.py reads captions and regions alone)."""
    regions = np.random.default_rng(0).random((2 if isinstance(rows, str) else rows, 3, 4), "f4")
    if isinstance(rows, str):
        regions = np.repeat(regions, 3, axis=0)
    (tmp_path / "dev_caps.txt").write_text("".join(f"caption {n}\n" for n in range(captions)))
    np.save(tmp_path / "dev_ims.npy", regions)
    source = open_source("precomp", SourceRequest(str(tmp_path)))
    found = [row for row in source.rows() if isinstance(row, Row)]

    assert [row.image_id for row in found] == [f"dev/{n}" for n in range(images)]
    assert found[1].captions[0].text == f"caption {first_of_second}"
    second = array(read_regions(found[1].regions))
    assert (second == regions[first_of_second if isinstance(rows, str) else 1]).all()
    assert any("dev_ids.txt is not there" in line for line in source.notes.lines("x"))


def test_precomp_without_ids_needs_regions_that_fit(tmp_path):
    (tmp_path / "dev_caps.txt").write_text("a\nb\nc\n")
    np.save(tmp_path / "dev_ims.npy", np.zeros((2, 3, 4), "f4"))
    with pytest.raises(SourceError, match=r"has 2 rows, and dev_caps.txt 3 captions; without"):
        read("precomp", input=str(tmp_path))
    with pytest.raises(SourceError, match="omit --no-regions, or the split with --split"):
        read("precomp", input=str(tmp_path), use_regions=False)


def test_precomp_takes_images_regions_or_both(tmp_path, photos):
    ims = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    precomp(tmp_path / "precomp", "train", [4, 9], [f"c{n}" for n in range(10)], ims)
    (tmp_path / "id_mapping.json").write_text('{"4": "0.jpg", "9": "1.jpg"}')
    make("precomp", tmp_path / "both", input=str(tmp_path))
    make("precomp", tmp_path / "images_only", input=str(tmp_path), use_regions=False)
    make("precomp", tmp_path / "regions_only", input=str(tmp_path), use_images=False)

    members = {
        name: {frozenset(m) for m in stored(tmp_path / name).values()}
        for name in ("both", "images_only", "regions_only")
    }
    assert members == {
        "both": {frozenset({"jpg", "npy", "json"})},
        "images_only": {frozenset({"jpg", "json"})},
        "regions_only": {frozenset({"npy", "json"})},
    }
    assert stored(tmp_path / "both")[9]["jpg"] == photos["1.jpg"]
    np.testing.assert_array_equal(array(stored(tmp_path / "both")[9]["npy"]), ims[1])


def test_precomp_reads_testall_and_not_the_test_within_it(tmp_path):
    ims = np.zeros((2, 1, 2), np.float32)
    precomp(tmp_path, "testall", [1, 2], ["a", "b"], ims)
    precomp(tmp_path, "test", [1], ["a"], ims[:1])

    assert {row.split for row in read("precomp", input=str(tmp_path))[0]} == {"testall"}
    wanted = read("precomp", input=str(tmp_path), wanted={"test"})[0]
    assert [row.split for row in wanted] == ["test"]


@pytest.mark.parametrize(
    ("ids", "captions", "rows", "message"),
    [
        ([1, 2, 3], ["a"] * 10, 3, "3 ids and train_caps.txt 10 captions"),
        ([1, 1, 2, 3], ["a"] * 4, 2, "repeats its first id 2 times, but not every id"),
        ([1, 2], ["a"] * 10, 7, "has 7 rows for 2 images and 10 captions"),
        ([], [], 0, "0 ids"),
    ],
)
def test_precomp_lists_that_disagree_are_refused(tmp_path, ids, captions, rows, message):
    precomp(tmp_path, "train", ids, captions, np.zeros((rows, 1, 2), np.float32))
    with pytest.raises(SourceError, match=message):
        read("precomp", input=str(tmp_path))


def test_precomp_without_captions_or_mapping_says_so(tmp_path, photos):
    (tmp_path / "train_ids.txt").write_text("1\n")
    with pytest.raises(SourceError, match=r"no id_mapping\.json"):
        read("precomp", input=str(tmp_path))
    with pytest.raises(SourceError, match=r"train_caps\.txt: cannot be read"):
        read("precomp", input=str(tmp_path), use_images=False)


@pytest.mark.parametrize(("name", "images"), [("coco_precomp", 113_287), ("f30k_precomp", 29_000)])
def test_real_precomp_lists_are_read_whole(shared, tmp_path, name, images):
    """With made-up features of the real shape: 33 GB for COCO, in a file of holes."""
    folder = shared / "data/precomp" / name
    ids = (folder / "train_ids.txt").read_text().split()
    precomp(tmp_path, "train", ids, (f"caption {n}" for n in range(5 * len(ids))))
    (tmp_path / "dev_ids.txt").symlink_to(folder / "dev_ids.txt")
    (tmp_path / "dev_caps.txt").symlink_to(folder / "dev_caps.txt")
    dev = len((folder / "dev_ids.txt").read_text().split())
    last = np.random.default_rng(0).normal(size=(36, 2048)).astype(np.float32)
    for split, rows in (("train", images), ("dev", dev)):
        path = tmp_path / f"{split}_ims.npy"
        made_up = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 36, 2048))
        made_up[-1] = last
        made_up.flush()
    before = forget_peak()
    rows, problems = read("precomp", input=str(tmp_path))

    assert problems == []
    train = [row for row in rows if row.split == "train"]
    assert [str(row.image_id) for row in train] == ids
    assert train[-1].captions[-1].text == f"caption {5 * images - 1}"
    assert train[-1].regions.row == images - 1
    np.testing.assert_array_equal(array(read_regions(train[-1].regions)), last)
    assert not array(read_regions(train[0].regions)).any()
    validation = [row for row in rows if row.split == "dev"]
    assert len(validation) == dev // 5
    assert validation[1].regions.row == 5
    lines = (folder / "dev_caps.txt").read_text().splitlines()
    assert [c.text for r in validation for c in r.captions] == [line.strip() for line in lines]
    assert peak_memory() - before < 600e6, "of the rows, not of the features"


def test_real_region_features_come_out_bit_equal(shared, tmp_path):
    butd = shared / "data/butd"
    ims = np.load(butd / "ims.npy")
    ids = (butd / "ids.txt").read_text().split()
    precomp(tmp_path / "precomp", "train", ids, [f"words {n}" for n in range(10)])
    (tmp_path / "precomp/train_ims.npy").symlink_to(butd / "ims.npy")
    mapping = {image_id: f"{image_id}.jpg" for image_id in ids}
    (tmp_path / "id_mapping.json").write_text(json.dumps(mapping))
    make("precomp", tmp_path / "out", input=str(tmp_path), images=str(butd / "images"))

    samples = stored(tmp_path / "out")
    assert len(samples) == 10
    for number, image_id in enumerate(ids):
        values = array(samples[image_id]["npy"])
        assert values.dtype == np.float32
        assert values.tobytes() == ims[number].tobytes()
        assert samples[image_id]["jpg"] == (butd / f"images/{image_id}.jpg").read_bytes()


# csv and parquet


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_csv_joins_the_captions_of_an_image(tmp_path, photos, delimiter):
    path = tmp_path / "results.csv"
    lines = [("0.jpg", "one, a"), ("1.jpg", 'two; "b"'), ("0.jpg", "three | c")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["image_name", "comment"])
        writer.writerows(lines)
    make("csv", tmp_path / "out", input=str(path), images=str(tmp_path / "images"))

    texts = {
        image_id: [c["text"] for c in json.loads(members["json"])["captions"]]
        for image_id, members in stored(tmp_path / "out").items()
    }
    assert texts == {"0.jpg": ["one, a", "three | c"], "1.jpg": ['two; "b"']}


def test_csv_columns_by_option_and_ids(tmp_path, photos):
    path = tmp_path / "t.csv"
    path.write_text("pic,words,fold,image_id,caption_id\nimages/0.jpg,hello,val,17,4\n")
    columns = {"image": "pic", "caption": "words", "split": "fold"}
    rows, _ = read("csv", input=str(path), columns=columns)

    assert told(rows) == [("val", 17, [(4, "hello")], "images/0.jpg")]


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("imagefile,caption\na.jpg,b\n")
    with pytest.raises(SourceError, match=r"no column 'image'.* has imagefile, caption; name it"):
        read("csv", input=str(path))
    with pytest.raises(SourceError, match="no column 'imagefiel'; did you mean 'imagefile'"):
        read("csv", input=str(path), columns={"image": "imagefiel"})
    with pytest.raises(SourceError, match="'picture' is not a known column; choose from image"):
        read("csv", input=str(path), columns={"picture": "imagefile"})


def test_parquet_takes_strings_and_lists(tmp_path, photos):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pairs = pyarrow.table({"image": ["0.jpg", "1.jpg", "0.jpg"], "caption": ["a", "b", "c"]})
    parquet.write_table(pairs, tmp_path / "pairs.parquet")
    lists = pyarrow.table({"image": ["0.jpg"], "captions": [["a", "c"]], "sentids": [[3, 4]]})
    parquet.write_table(lists, tmp_path / "lists.parquet")
    images = str(tmp_path / "images")
    make("parquet", tmp_path / "out", input=str(tmp_path / "pairs.parquet"), images=images)

    texts = json.loads(stored(tmp_path / "out")["0.jpg"]["json"])["captions"]
    assert [c["text"] for c in texts] == ["a", "c"]
    rows, _ = read("parquet", input=str(tmp_path / "lists.parquet"), images=images)
    assert told(rows) == [("train", "0.jpg", [(3, "a"), (4, "c")], "0.jpg")]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceError, match=r"needs pyarrow.*pip install pyarrow"):
        read("parquet", input=str(tmp_path / "t.parquet"))


# folder


def test_a_folder_of_images_and_texts(tmp_path, tools):
    for name in ("train/a.jpg", "val/deep/b.png", "c.jpg", "lonely.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.endswith("png") else "JPEG"
        (tmp_path / name).write_bytes(tools.encoded(tools.picture(1), kind))
    (tmp_path / "train/a.txt").write_text("first\n\nsecond\n")
    (tmp_path / "val/deep/b.txt").write_text("only\r\n")
    (tmp_path / "c.txt").write_text("of the top")
    (tmp_path / "orphan.txt").write_text("of nothing")
    rows, problems = read("folder", input=str(tmp_path))

    assert told(rows) == [
        ("train", "c.jpg", [(None, "of the top")], "c.jpg"),
        ("train", "train/a.jpg", [(None, "first"), (None, "second")], "train/a.jpg"),
        ("val", "val/deep/b.png", [(None, "only")], "val/deep/b.png"),
    ]
    assert [(p.origin, p.reason) for p in problems] == [
        ("lonely.jpg", "no caption"),
        ("orphan.txt", "caption for no image"),
    ]


# webdataset


def write_tar(path: Path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_img2datasets_output(tmp_path, photos):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    members = []
    for n in range(3):
        meta = {"caption": f"words {n}", "key": f"{n:09d}", "width": 40, "status": "success"}
        members.append((f"{n:09d}.jpg", photos[f"{n}.jpg"]))
        members.append((f"{n:09d}.json", json.dumps(meta).encode()))
        if n != 1:
            members.append((f"{n:09d}.txt", f"words {n}".encode()))
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text('{"count": 4, "successes": 3}')
    # A second shard whose captions are in the table alone.
    write_tar(tmp_path / "00001.tar", [("000010000.jpg", photos["3.jpg"])])
    table = pyarrow.table({"key": ["000010000"], "caption": ["of the table"]})
    parquet.write_table(table, tmp_path / "00001.parquet")
    make("webdataset", tmp_path / "out", input=str(tmp_path))

    samples = stored(tmp_path / "out")
    got = {i: (m["jpg"], json.loads(m["json"])["captions"][0]["text"]) for i, m in samples.items()}
    assert got == {
        **{f"00000/{n:09d}": (photos[f"{n}.jpg"], f"words {n}") for n in range(3)},
        "00001/000010000": (photos["3.jpg"], "of the table"),
    }


def test_a_download_that_did_not_end_is_refused(tmp_path, photos):
    write_tar(tmp_path / "00000.tar", [("0.jpg", photos["0.jpg"]), ("0.txt", b"words")])
    (tmp_path / "00000_stats.json").write_text('{"successes": 2}')
    with pytest.raises(SourceError, match=r"has 1 images, 00000_stats\.json says 2"):
        read("webdataset", input=str(tmp_path))


def test_our_own_shards_are_a_source_that_gives_the_same_samples(small_source, tmp_path):
    make("jsonl", tmp_path / "a", BuildOptions(shard_samples=7), input=str(small_source(20)))
    make("webdataset", tmp_path / "b", input=str(tmp_path / "a"))

    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert {n: s.images for n, s in Manifest.load(tmp_path / "b").splits.items()} == {
        "train": 16,
        "val": 4,
    }


def test_members_of_one_key_need_not_lie_side_by_side(tmp_path, photos):
    write_tar(
        tmp_path / "t.tar",
        [("a.jpg", photos["0.jpg"]), ("b.jpg", photos["1.jpg"]), ("b.txt", b"B"), ("a.txt", b"A")],
    )
    rows, problems = read("webdataset", input=str(tmp_path / "t.tar"))

    assert problems == []
    assert [(r.image_id, r.captions[0].text) for r in rows] == [("t/a", "A"), ("t/b", "B")]


@pytest.mark.parametrize(
    ("kind", "request_", "option"),
    [
        ("webdataset", {"images": "x"}, "--images"),
        ("coco", {"columns": {"a": "b"}}, "--column"),
        ("jsonl", {"use_regions": False}, "--no-regions"),
    ],
)
def test_an_option_without_meaning_is_refused(kind, request_, option):
    with pytest.raises(SourceError, match=f"{option} does not apply to --source {kind}"):
        open_source(kind, SourceRequest(input="x", **request_))


def test_every_built_in_source_bears_the_name_that_chooses_it():
    assert {name: SOURCES.find(name).kind for name in SOURCES.names()} == {
        name: name for name in SOURCES.names()
    }


# A source as a user would write it: every file of a folder is an image whose name is its caption.
OWN_SOURCE = """
import os
from vse_shards.sources import Caption, Location, Row

class NamesSource:
    kind = "names"
    options = frozenset({"images"})

    def __init__(self, path, images=None):
        self.name, self._path, self._images = "names", path, images

    def rows(self):
        with open(self._path) as file:
            for line in file.read().split():
                image = Location(os.path.join(self._images, line))
                caption = (Caption(None, line.split(".")[0]),)
                yield Row("train", line, caption, image, f"name {line}", line)

class NoSource:
    kind = "none"
"""


@pytest.fixture
def own_source(tmp_path, tools, monkeypatch):
    """A folder on PYTHONPATH with the module above and an entry point to it; images and a list."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "vse_test_names.py").write_text(OWN_SOURCE)
    info = tmp_path / "path" / "vse_test_names-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vse-test-names\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vse_shards.sources]\nnames = vse_test_names:NamesSource\n"
    )
    for number, name in enumerate(["cat", "dog"]):
        (tmp_path / f"{name}.jpg").write_bytes(tools.encoded(tools.picture(number)))
    (tmp_path / "list.txt").write_text("cat.jpg dog.jpg")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    return tmp_path


@pytest.mark.parametrize("kind", ["names", "vse_test_names:NamesSource"])
def test_the_command_builds_from_a_source_of_another_package(own_source, command, kind):
    paths = ["--input", own_source / "list.txt", "--images", own_source, "--out", own_source / "o"]
    ended = command("build", "--source", kind, *paths)
    assert ended.returncode == 0, ended.stderr
    assert Manifest.load(own_source / "o").source["kind"] == "names"
    assert {
        image_id: json.loads(members["json"])["captions"][0]["text"]
        for image_id, members in stored(own_source / "o").items()
    } == {"cat.jpg": "cat", "dog.jpg": "dog"}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("names", ["--no-regions"], "--no-regions does not apply to --source names; omit it"),
        ("name", [], "source 'name' is not known; did you mean 'names'? Choose jsonl, csv, "),
        (
            "vse_test_names:NoSource",
            [],
            "source 'vse_test_names:NoSource' has no options and no rows",
        ),
        (
            "vse_test_names:Absent",
            [],
            "cannot be imported: AttributeError: module 'vse_test_names'",
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_one_line(own_source, command, kind, options, message):
    paths = ["--input", own_source / "list.txt", "--out", own_source / "o"]
    ended = command("build", "--source", kind, *paths, *options)
    assert ended.returncode == 2
    assert ended.stderr.startswith("vse-shards: error: ")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_help_lists_every_source(command):
    text = " ".join(command("build", "--help").stdout.split())
    assert f"Layout of the input: {', '.join(SOURCES.names())}; or module:Class" in text
