from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_shards.errors import DatasetError
from vse_shards.manifest import Manifest, ShardRecord, Split, run_length_code

INDEX = "v1.2 2\njpg 512 3 00000000.jpg\njpg 1536 3 00000001.jpg\n"


def record(**changes):
    values = {
        "name": "train-000000.tar",
        "samples": 2,
        "pairs": 7,
        "bytes": 10240,
        "sha256": "a" * 64,
        "index_sha256": hashlib.sha256(INDEX.encode()).hexdigest(),
        "captions": ((5, 1), (2, 1)),
    }
    return ShardRecord(**{**values, **changes})


def manifest(*records):
    return Manifest(
        splits={"train": Split(records or (record(),))},
        rejects=0,
        rejects_sha256="b" * 64,
        build={"seed": 0},
        source={"kind": "jsonl"},
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manifest.json").write_text(manifest().dumps())
    (tmp_path / "train-000000.tar").write_bytes(bytes(10240))
    (tmp_path / "train-000000.idx").write_text(INDEX)
    return tmp_path


def test_a_manifest_reads_back_as_it_was(folder):
    read = Manifest.load(folder)

    assert read == manifest()
    assert read.dumps() == (folder / "manifest.json").read_text()
    assert (read.splits["train"].images, read.splits["train"].pairs) == (2, 7)
    read.check(folder)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30))
def test_the_run_length_code_gives_back_the_counts(counts):
    shard = record(captions=run_length_code(counts))

    np.testing.assert_array_equal(shard.captions_per_sample(), counts)


def test_anything_that_differs_changes_the_fingerprint():
    shards = [record(), record(sha256="c" * 64), record(index_sha256="d" * 64), record(bytes=1)]

    assert len({manifest(shard).fingerprint for shard in shards}) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a manifest"),
        ('{"format": "other"}', "not a manifest"),
        ('{"format": "vse-shards", "version": 9}', "version 9, this program reads 1"),
        ('{"format": "vse-shards", "version": 1}', "malformed: no key 'splits'"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)

    with pytest.raises(DatasetError, match=message):
        Manifest.load(tmp_path)


def test_a_manifest_that_was_edited_is_refused(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["build"]["seed"] = 1
    (folder / "manifest.json").write_text(json.dumps(content))

    with pytest.raises(DatasetError, match="was changed after the build"):
        Manifest.load(folder)


def test_counts_that_do_not_add_up_are_refused(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["pairs"] = 8
    (folder / "manifest.json").write_text(json.dumps(content))

    with pytest.raises(DatasetError, match="do not add up to its pairs"):
        Manifest.load(folder)


def test_no_folder_and_no_manifest_are_told_apart(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        Manifest.load(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"has no manifest\.json"):
        Manifest.load(tmp_path)


def test_check_names_the_tar_and_both_sizes(folder):
    (folder / "train-000000.tar").write_bytes(bytes(5120))

    with pytest.raises(DatasetError, match=r"train-000000\.tar: has 5,120 bytes.*10,240"):
        Manifest.load(folder).check(folder)


def test_check_names_a_tar_that_is_not_there(folder):
    (folder / "train-000000.tar").unlink()

    with pytest.raises(DatasetError, match=r"train-000000\.tar: No such file"):
        Manifest.load(folder).check(folder)


def test_check_names_an_index_of_another_tar(folder):
    (folder / "train-000000.idx").write_text(INDEX.replace("1536", "2048"))

    with pytest.raises(DatasetError, match=r"train-000000\.idx: has sha256 .* the manifest says"):
        Manifest.load(folder).check(folder)


def test_check_compares_counts_of_samples(tmp_path):
    shard = record(samples=3, captions=((5, 1), (1, 2)))
    (tmp_path / "train-000000.tar").write_bytes(bytes(10240))
    (tmp_path / "train-000000.idx").write_text(INDEX)

    with pytest.raises(DatasetError, match="has 2 samples, the manifest says 3"):
        manifest(shard).check(tmp_path)


def test_an_unknown_split_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(DatasetError, match="no split 'val'; it has train"):
        manifest().split("val", tmp_path)
