from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import nvidia.dali.fn as fn
import pytest
import webdataset
from nvidia.dali import pipeline_def
from PIL import Image
from wds2idx import IndexCreator

from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError, SourceError
from vse_shards.images import ImageOptions, check_image
from vse_shards.index import read_index
from vse_shards.manifest import Manifest
from vse_shards.shuffle import shuffle, source_positions
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.verify import verify

SMALL = BuildOptions(shard_samples=7)


def stored(folder: Path) -> dict[str, tuple[bytes, dict[str, object]]]:
    """Image and description of every sample, by shard and key, read by the index."""
    found = {}
    for split in Manifest.load(folder).splits.values():
        for shard in split.shards:
            data = (folder / shard.name).read_bytes()
            index = read_index(folder / shard.index_name)
            for row, key in enumerate(index.keys):
                jpg, text = (
                    data[offset : offset + size]
                    for offset, size in (index.place(row, "jpg"), index.place(row, "json"))
                )
                found[f"{shard.name}: {key}"] = jpg, json.loads(text)
    return found


@pytest.fixture
def dataset(small_source, tmp_path):
    build(JsonlSource(str(small_source(40))), str(tmp_path / "out"), SMALL)
    return tmp_path / "out"


def test_every_image_is_there_once_with_its_captions_and_its_bytes(dataset, tmp_path):
    samples = stored(dataset)
    by_id = {description["image_id"]: (jpg, description) for jpg, description in samples.values()}

    assert sorted(by_id) == list(range(100, 140))
    for image_id, (jpg, description) in by_id.items():
        number = image_id - 100
        assert jpg == (tmp_path / f"source/images/{number:04d}.jpg").read_bytes()
        assert description["captions"] == [
            {"id": f"{image_id}#{k}", "text": f"picture {number}, wording {k}"}
            for k in range(1 + number % 3)
        ]
        assert (description["width"], description["height"]) == (40, 32)


def test_splits_and_counts_are_those_of_the_source(dataset):
    manifest = Manifest.load(dataset)

    assert {name: split.images for name, split in manifest.splits.items()} == {
        "train": 32,
        "val": 8,
    }
    counts = {
        f"{shard.name}": shard.captions_per_sample().tolist()
        for split in manifest.splits.values()
        for shard in split.shards
    }
    told = {}
    for name, (_, description) in stored(dataset).items():
        told.setdefault(name.split(":")[0], []).append(len(description["captions"]))
    assert counts == told
    manifest.check(dataset)
    assert verify(dataset, deep=True) == []


def test_neighbours_are_strangers(dataset):
    ids = [d["image_id"] for name, (_, d) in stored(dataset).items() if name.startswith("train")]

    assert ids != sorted(ids)
    assert np.mean(np.abs(np.diff(ids)) <= 2) < 0.4


def test_the_shuffle_depends_on_seed_and_split_alone():
    orders = [shuffle(100, seed, split) for seed in (0, 1) for split in ("train", "val")]

    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], shuffle(100, 0, "train"))


def test_the_shuffle_is_this_one_for_ever():
    assert shuffle(8, 0, "train").tolist() == [6, 1, 2, 0, 3, 4, 5, 7]


def test_the_order_of_the_source_can_be_told(dataset):
    manifest = Manifest.load(dataset)
    for name, split in manifest.splits.items():
        ids, keys = [], []
        for place, (_, description) in stored(dataset).items():
            if place.split("-")[0] == name:
                ids.append(description["image_id"])
                keys.append(place.split(": ")[1])
        assert len(keys) == split.images
        order = np.argsort(source_positions(manifest, name, keys))
        assert np.array(ids)[order].tolist() == sorted(ids)


def test_one_and_four_workers_give_the_same_files(small_source, tmp_path, tools):
    source = str(small_source(40))
    for workers in (1, 4):
        options = BuildOptions(shard_samples=7, workers=workers)
        build(JsonlSource(source), str(tmp_path / f"out{workers}"), options)

    assert tools.digests(tmp_path / "out1") == tools.digests(tmp_path / "out4")
    assert len(tools.digests(tmp_path / "out1")) == 3 * 7 + 3


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_gives_the_same_files(
    small_source, tmp_path, tools, build_and_kill
):
    source = small_source(400)
    build(JsonlSource(str(source)), str(tmp_path / "whole"), SMALL)
    in_the_middle = build_and_kill(source, tmp_path / "killed", 7, kills=4, seed=0)

    assert in_the_middle >= 2
    assert tools.digests(tmp_path / "killed") == tools.digests(tmp_path / "whole")


def test_a_second_build_leaves_finished_shards_alone(small_source, tmp_path):
    source = str(small_source(40))
    build(JsonlSource(source), str(tmp_path / "out"), SMALL)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/*.tar")}
    damaged = tmp_path / "out" / "train-000001.tar"
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    build(JsonlSource(source), str(tmp_path / "out"), SMALL)

    changed = {p.name for p in tmp_path.glob("out/*.tar") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"train-000001.tar"}
    assert verify(tmp_path / "out") == []


def test_our_index_equals_the_one_of_wds2idx(dataset, tmp_path):
    for tar in dataset.glob("*.tar"):
        with IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "theirs.idx").read_bytes() == tar.with_suffix(".idx").read_bytes()


def test_webdataset_reads_every_sample(dataset):
    expected = stored(dataset)
    for tar in sorted(dataset.glob("*.tar")):
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
            jpg, description = expected.pop(f"{tar.name}: {sample['__key__']}")
            assert sample["jpg"] == jpg
            assert json.loads(sample["json"]) == description
    assert expected == {}


def test_dali_reads_every_sample(dataset):
    expected = stored(dataset)
    for tar in sorted(dataset.glob("*.tar")):

        @pipeline_def(batch_size=1, num_threads=1, device_id=None)
        def read(path=str(tar)):
            return tuple(
                fn.readers.webdataset(
                    paths=[path],
                    index_paths=[path.removesuffix("tar") + "idx"],
                    ext=["jpg", "json"],
                    missing_component_behavior="error",
                )
            )

        pipeline = read()
        pipeline.build()
        for key in read_index(tar.with_suffix(".idx")).keys:
            jpg, text = (np.asarray(output[0]).tobytes() for output in pipeline.run())
            assert (jpg, json.loads(text)) == expected.pop(f"{tar.name}: {key}")
    assert expected == {}


def test_the_manifest_holds_no_path_time_or_worker_count(dataset, tmp_path):
    text = (dataset / "manifest.json").read_text()

    assert str(tmp_path) not in text
    assert "workers" not in text
    assert sorted(json.loads(text)) == [
        "build", "fingerprint", "format", "rejects", "rejects_sha256", "source", "splits",
        "version",
    ]  # fmt: skip


def test_the_same_source_elsewhere_gives_the_same_dataset(small_source, tmp_path, tools):
    source = small_source(10)
    build(JsonlSource(str(source)), str(tmp_path / "a"), SMALL)
    (tmp_path / "source").rename(tmp_path / "moved")
    build(JsonlSource(str(tmp_path / "moved/captions.jsonl")), str(tmp_path / "b"), SMALL)

    assert tools.digests(tmp_path / "a") == tools.digests(tmp_path / "b")


def test_bad_images_go_to_rejects_with_their_reason(write_rows, tmp_path, tools):
    good = tools.encoded(tools.picture(1))
    files = {"good.jpg": good, "cut.jpg": good[:300], "page.jpg": b"<html>", "void.jpg": b""}
    rows = [{"image": name, "captions": ["words"]} for name in files]
    summary = build(JsonlSource(str(write_rows(rows, files))), str(tmp_path / "out"), SMALL)
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open()]

    assert {line["key"]: line["reason"] for line in lines} == {
        "cut.jpg": "truncated",
        "page.jpg": "not an image",
        "void.jpg": "empty file",
    }
    assert (summary.images, summary.manifest.rejects) == (1, 3)
    assert verify(tmp_path / "out") == []


def test_a_shard_that_would_be_empty_is_omitted_without_renumbering(write_rows, tmp_path, tools):
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) if n == 3 else b"no" for n in range(5)}
    rows = [{"image": name, "captions": ["words"]} for name in files]
    source = JsonlSource(str(write_rows(rows, files)))
    build(source, str(tmp_path / "out"), BuildOptions(shard_samples=1))
    (shard,) = Manifest.load(tmp_path / "out").splits["train"].shards
    place = shuffle(5, 0, "train").tolist().index(3)

    assert shard.name == f"train-{place:06d}.tar"
    assert [p.name for p in tmp_path.glob("out/*.tar")] == [shard.name]
    assert read_index(tmp_path / "out" / shard.index_name).keys == [f"{place:08d}"]


def test_nothing_but_rejects_is_an_error(write_rows, tmp_path):
    source = JsonlSource(str(write_rows([{"image": "a.jpg", "captions": "x"}], {"a.jpg": b"no"})))

    with pytest.raises(SourceError, match=r"the only image was rejected \(1 not an image\)"):
        build(source, str(tmp_path / "out"), SMALL)


def test_splits_can_be_joined_and_left_out(small_source, tmp_path):
    path = str(small_source(20))
    options = BuildOptions(splits={"train": "all", "val": "all"})
    build(JsonlSource(path), str(tmp_path / "joined"), options)
    build(JsonlSource(path), str(tmp_path / "one"), BuildOptions(splits={"val": "dev"}))

    assert Manifest.load(tmp_path / "joined").splits["all"].images == 20
    assert {n: s.images for n, s in Manifest.load(tmp_path / "one").splits.items()} == {"dev": 4}
    with pytest.raises(SourceError, match="no rows of the requested splits; it has"):
        build(JsonlSource(path), str(tmp_path / "none"), BuildOptions(splits={"test": "test"}))


def test_an_image_in_two_splits_is_an_error_unless_allowed(write_rows, tmp_path, tools):
    same, other = (tools.encoded(tools.picture(n)) for n in (1, 2))
    files = {"a.jpg": same, "b.jpg": same, "c.jpg": other}
    rows = [
        {"image": "a.jpg", "split": "train", "captions": ["one"]},
        {"image": "b.jpg", "split": "test", "captions": ["two"]},
        {"image": "c.jpg", "split": "train", "captions": ["three"]},
    ]
    source = JsonlSource(str(write_rows(rows, files)))
    with pytest.raises(SourceError, match=r"1 image is in .* pixel for pixel: .*a\.jpg \(tr"):
        build(source, str(tmp_path / "out"), SMALL)
    assert not (tmp_path / "out/manifest.json").exists()

    summary = build(source, str(tmp_path / "out"), BuildOptions(shard_samples=7, allow_leaks=True))
    assert summary.duplicates == 1
    (line,) = map(json.loads, (tmp_path / "out/duplicates.jsonl").open())
    assert {place["image_id"] for place in line} == {"a.jpg", "b.jpg"}


def test_likeness_is_not_taken_for_equality(write_rows, tmp_path, tools):
    pixels = np.full((64, 64, 3), 128, np.uint8)
    flat = tools.encoded(Image.fromarray(pixels), quality=95)
    pixels[0, 0] = 131  # too little to be seen at an eighth of the size
    nearly = tools.encoded(Image.fromarray(pixels), quality=95)
    assert check_image(flat, ImageOptions()).digest == check_image(nearly, ImageOptions()).digest
    files = {"a.jpg": flat, "b.jpg": nearly}
    rows = [{"image": name, "split": name[0], "captions": ["x"]} for name in files]
    summary = build(JsonlSource(str(write_rows(rows, files))), str(tmp_path / "out"), SMALL)

    assert summary.duplicates == 0


def test_a_folder_of_something_else_is_left_alone(small_source, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("thesis.tex", "thesis.tmp"):
        (tmp_path / "out" / name).write_text("years of work")

    with pytest.raises(OutputError, match=r"contains other files \(thesis\.tex\)"):
        build(JsonlSource(str(small_source(5))), str(tmp_path / "out"), SMALL)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["thesis.tex", "thesis.tmp"]


def test_a_dataset_of_other_options_is_replaced_only_when_asked(small_source, tmp_path, tools):
    source = JsonlSource(str(small_source(12)))
    build(source, str(tmp_path / "out"), SMALL)
    other = BuildOptions(shard_samples=100, image=ImageOptions(max_side=16))
    with pytest.raises(OutputError, match="build max_side was None, now 16"):
        build(source, str(tmp_path / "out"), other)

    build(source, str(tmp_path / "out"), BuildOptions(**{**other.__dict__, "overwrite": True}))
    build(source, str(tmp_path / "fresh"), other)
    assert tools.digests(tmp_path / "out") == tools.digests(tmp_path / "fresh")


def test_two_builds_do_not_share_a_folder(small_source, tmp_path):
    from vse_shards.output import OutputFolder

    source = JsonlSource(str(small_source(5)))
    with (
        OutputFolder(str(tmp_path / "out")).opened(),
        pytest.raises(OutputError, match="another build is running"),
    ):
        build(source, str(tmp_path / "out"), SMALL)


def test_flickr8k_builds_untouched(shared, tmp_path):
    source = JsonlSource(str(shared / "data/flickr8k/captions.jsonl"))
    workers = min(2, len(os.sched_getaffinity(0)))
    summary = build(source, str(tmp_path / "out"), BuildOptions(workers=workers))

    splits = summary.manifest.splits
    assert {name: (split.images, split.pairs) for name, split in splits.items()} == {
        "train": (2000, 10000),
        "val": (500, 2500),
    }
    assert summary.untouched == 2500
    assert summary.rejects == {}


def test_coco_photos_build_with_their_caption_ids(shared, tmp_path):
    path = shared / "data/coco_sample/captions.jsonl"
    build(JsonlSource(str(path)), str(tmp_path / "out"), SMALL)
    told = {
        d["image_id"]: [c["id"] for c in d["captions"]]
        for _, d in stored(tmp_path / "out").values()
    }
    rows = map(json.loads, path.open())

    assert told == {row["image_id"]: row["caption_ids"] for row in rows}
