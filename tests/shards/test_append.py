"""Datasets that grow, and datasets that are joined.

Public reports: huggingface/datasets#6290 (append without writing every shard again),
webdataset/webdataset#157 (keys that repeat in joined tars), ashnair1/COCO-Assistant#25 (sets that
each number their images from 0).
"""

from __future__ import annotations

import json

import pytest

from vse_shards import seal
from vse_shards.append import append, options_of
from vse_shards.build import BuildOptions, build
from vse_shards.carve import Carving
from vse_shards.errors import SourceError
from vse_shards.info import descriptions
from vse_shards.manifest import Manifest
from vse_shards.merge import merge
from vse_shards.shuffle import source_positions
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.verify import verify

SMALL = BuildOptions(shard_samples=10)


@pytest.fixture
def rows_of(tmp_path, tools):
    """Write a jsonl source of pictures by number; a pair gives another picture to an id."""

    def write(name: str, numbers, split: str = "train") -> JsonlSource:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = []
        for number in numbers:
            image_id, seed = number if isinstance(number, tuple) else (number, number)
            (folder / f"{image_id}.jpg").write_bytes(tools.encoded(tools.picture(seed)))
            row = {"image": f"{image_id}.jpg", "image_id": image_id, "split": split}
            lines.append(json.dumps({**row, "captions": [f"w {image_id} of {seed}"]}) + "\n")
        (folder / "c.jsonl").write_text("".join(lines))
        return JsonlSource(str(folder / "c.jsonl"))

    return write


def ids(folder) -> list[object]:
    splits = Manifest.load(folder).splits.values()
    found = (d["image_id"] for split in splits for d in descriptions(folder, split))
    return sorted(found, key=lambda one: (isinstance(one, str), one))


def test_new_rows_become_new_shards_and_the_others_stay(rows_of, tmp_path, tools):
    out = tmp_path / "out"
    build(rows_of("in", range(40)), str(out), SMALL)
    before, old = tools.digests(out), Manifest.load(out)
    summary = append(rows_of("in", range(41)), str(out), options_of(str(out), BuildOptions()))
    after = tools.digests(out)

    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert after.keys() - before.keys() == {f"train-000004.{e}" for e in ("tar", "idx", "json")}
    assert summary.notes[-1] == "40 of 41 images of c.jsonl are in the dataset already"
    assert ids(out) == list(range(41))
    assert Manifest.load(out).fingerprint != old.fingerprint
    assert verify(out, deep=True) == []

    again = append(rows_of("in", range(41)), str(out), options_of(str(out), BuildOptions()))
    assert not again.changed
    assert tools.digests(out) == after


def test_a_grown_dataset_names_those_that_it_begins_with(rows_of, tmp_path):
    out = tmp_path / "out"
    build(rows_of("a", range(25)), str(out), SMALL)
    earlier = [Manifest.load(out)]
    for name, numbers, split in (("b", range(25, 30), "val"), ("c", range(30, 45), "train")):
        append(rows_of(name, numbers, split), str(out), options_of(str(out), BuildOptions()))
        earlier.append(Manifest.load(out))
    grown = earlier.pop()
    assert [part["fingerprint"] for part in grown.source["appended"]] == [
        one.fingerprint for one in earlier
    ]
    assert [part["shards"] for part in grown.source["appended"]] == [
        {"train": 3}, {"train": 3, "val": 1}
    ]  # fmt: skip
    for one, part in zip(earlier, grown.source["appended"], strict=True):
        for split, content in one.splits.items():
            assert grown.splits[split].shards[: part["shards"][split]] == content.shards


def test_the_order_of_the_source_can_be_told_after_an_append(rows_of, tmp_path):
    out = tmp_path / "out"
    build(rows_of("a", range(13)), str(out), SMALL)
    append(rows_of("b", range(13, 37)), str(out), options_of(str(out), BuildOptions()))
    manifest = Manifest.load(out)
    from vse_shards.index import read_index

    split = manifest.splits["train"]
    keys = [key for shard in split.shards for key in read_index(out / shard.index_name).keys]
    found = [d["image_id"] for d in descriptions(out, split)]
    assert source_positions(manifest, "train", keys).tolist() == found


def test_an_append_that_ends_early_leaves_the_dataset_and_goes_on(rows_of, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    first, second = rows_of("a", range(20)), rows_of("b", range(20, 45))
    (tmp_path / "b/30.jpg").write_bytes(b"<html>")
    for folder in (whole, out):
        build(first, str(folder), SMALL)
    old = Manifest.load(out)
    options = options_of(str(out), BuildOptions())
    append(second, str(whole), options)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    for name in ("run_tasks", "report_duplicates", "remove_strays"):
        with monkeypatch.context() as patch:
            patch.setattr(seal, name, die)
            with pytest.raises(Killed):
                append(second, str(out), options)
        assert Manifest.load(out).fingerprint == old.fingerprint
        assert verify(out) == []
    append(second, str(out), options)
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert verify(out) == []


def test_an_id_of_the_dataset_with_another_picture_is_refused(rows_of, tmp_path):
    out = tmp_path / "out"
    build(rows_of("a", range(5)), str(out), SMALL)
    source = rows_of("b", [(2, 99), (7, 7)])
    with pytest.raises(SourceError, match=r"line 1: image_id 2 is the picture 2\.jpg here and an"):
        append(source, str(out), options_of(str(out), BuildOptions()))
    assert ids(out) == list(range(5))
    append(source, str(out), options_of(str(out), BuildOptions(prefix_ids=True)))
    assert ids(out)[5:] == ["c/2", "c/7"]


def test_more_captions_of_a_stored_image_are_a_reject(rows_of, tmp_path):
    out = tmp_path / "out"
    build(rows_of("a", range(5)), str(out), SMALL)
    source = rows_of("a", range(6))
    text = (tmp_path / "a/c.jsonl").read_text().replace("w 3 of 3", "something else")
    (tmp_path / "a/c.jsonl").write_text(text)
    summary = append(source, str(out), options_of(str(out), BuildOptions()))
    assert summary.rejects == {"captions of a stored image": 1}
    assert verify(out) == []


def test_leaks_across_the_old_and_the_new_are_found(rows_of, tmp_path, tools):
    out = tmp_path / "out"
    build(rows_of("a", range(5)), str(out), SMALL)
    before = tools.digests(out)
    by_id, by_pixels = rows_of("b", [3], "val"), rows_of("c", [(9, 3)], "val")
    for source, match in ((by_id, "is in split train of the dataset"), (by_pixels, "pixel for pi")):
        with pytest.raises(SourceError, match=match):
            append(source, str(out), options_of(str(out), BuildOptions()))
        assert before.items() <= tools.digests(out).items()
        assert verify(out) == []
    append(by_pixels, str(out), options_of(str(out), BuildOptions(allow_leaks=True)))
    assert ids(out) == [0, 1, 2, 3, 4, 9]


def test_a_build_over_a_grown_dataset_is_refused(rows_of, tmp_path, command):
    out = tmp_path / "out"
    first = rows_of("a", range(5))
    build(first, str(out), SMALL)
    append(rows_of("b", [5]), str(out), options_of(str(out), BuildOptions()))
    arguments = ["--source", "jsonl", "--input", tmp_path / "a/c.jsonl", "--out", out]
    result = command("build", *arguments, "--shard-samples", "10")
    assert result.returncode == 2
    assert "add new rows to it with vse-shards append" in result.stderr
    assert ids(out) == list(range(6))


def test_merged_datasets_share_a_manifest(rows_of, tmp_path, tools, command):
    a, b, out = (tmp_path / name for name in ("A", "B", "C"))
    build(rows_of("a", range(13)), str(a), SMALL)
    build(rows_of("b", range(13, 25), "val"), str(b), SMALL)
    first = command("merge", a, b, "--out", out, "--json")
    assert first.returncode == 0, first.stderr
    assert ids(out) == list(range(25))
    assert verify(out, deep=True) == []
    assert (out / "train-000001.tar").samefile(a / "train-000001.tar")
    before = tools.digests(out)
    assert "nothing to do" in command("merge", a, b, "--out", out).stderr
    assert tools.digests(out) == before
    append(rows_of("c", range(25, 30)), str(out), options_of(str(out), BuildOptions()))
    assert ids(out) == list(range(30))
    assert verify(out) == []


def test_ids_that_clash_are_refused_and_prefixed(rows_of, tmp_path):
    a, b, out = (tmp_path / name for name in ("A", "B", "C"))
    build(rows_of("a", range(4)), str(a), SMALL)
    build(rows_of("b", [(n, 10 + n) for n in range(4)]), str(b), SMALL)
    with pytest.raises(SourceError, match=r"image_id \d is in .*/A/train.*B/train.*--prefix-ids"):
        merge([a, b], out)
    merge([a, b], out, prefix_ids=True)
    assert ids(out) == sorted(f"{name}/{n}" for name in "AB" for n in range(4))
    assert verify(out, deep=True) == []
    stored = {
        d["image_id"]: d["captions"] for d in descriptions(out, Manifest.load(out).splits["train"])
    }
    assert stored["B/2"] == [{"id": "B/2#0", "text": "w 2 of 12"}]


def test_leaks_between_merged_datasets_are_found(rows_of, tmp_path):
    a, b, out = (tmp_path / name for name in ("A", "B", "C"))
    build(rows_of("a", range(4)), str(a), SMALL)
    build(rows_of("b", [(10, 2)], "val"), str(b), SMALL)
    with pytest.raises(SourceError, match=r"in more than one split, pixel for pixel: 2 \(train\)"):
        merge([a, b], out)
    assert not (out / "manifest.json").exists()
    assert merge([a, b], out, allow_leaks=True).duplicates == 1


def test_new_rows_are_carved_as_the_dataset_was(rows_of, tmp_path):
    """Each image is where it would be had all been there from the start."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = BuildOptions(shard_samples=10, carvings=(Carving("val", 30.0),))
    build(rows_of("a", range(30)), str(out), options)
    append(rows_of("a", range(60)), str(out), options_of(str(out), BuildOptions()))
    append(rows_of("a", range(61)), str(out), options_of(str(out), BuildOptions()))
    build(rows_of("b", range(61)), str(whole), options)

    def sides(folder):
        splits = Manifest.load(folder).splits
        return {
            name: {d["image_id"] for d in descriptions(folder, splits[name])} for name in splits
        }

    assert sides(out) == sides(whole)
