"""One damaged byte anywhere in a dataset is found, every time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_shards.build import BuildOptions, build
from vse_shards.errors import DatasetError
from vse_shards.manifest import Manifest, ShardRecord, Split, run_length_code
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.verify import verify
from vse_shards.writer import ShardWriter


def write_dataset(folder: Path, contents: list[list[tuple[bytes, int]]]) -> None:
    """A dataset of shards of (image bytes, number of captions), with manifest and rejects."""
    records = []
    for number, shard in enumerate(contents):
        file = io.BytesIO()
        writer = ShardWriter(file)
        for row, (image, captions) in enumerate(shard):
            description = {
                "image_id": f"{number}/{row}",
                "captions": [{"id": k, "text": "words"} for k in range(captions)],
                "width": 8,
                "height": 8,
            }
            writer.add(f"{row:08d}", {"jpg": image, "json": json.dumps(description).encode()})
        written = writer.finish()
        stem = f"train-{number:06d}"
        (folder / f"{stem}.tar").write_bytes(file.getvalue())
        (folder / f"{stem}.idx").write_text(written.index)
        records.append(
            ShardRecord(
                name=f"{stem}.tar",
                samples=len(shard),
                pairs=sum(captions for _, captions in shard),
                bytes=written.bytes,
                sha256=written.sha256,
                index_sha256=hashlib.sha256(written.index.encode()).hexdigest(),
                captions=run_length_code(captions for _, captions in shard),
            )
        )
    (folder / "rejects.jsonl").write_text('{"source": "a", "reason": "damaged"}\n')
    manifest = Manifest(
        splits={"train": Split(tuple(records))},
        rejects=1,
        rejects_sha256=hashlib.sha256((folder / "rejects.jsonl").read_bytes()).hexdigest(),
        build={"seed": 0, "max_side": None},
        source={"kind": "jsonl"},
    )
    (folder / "manifest.json").write_text(manifest.dumps())


def is_found_damaged(folder: Path) -> bool:
    with contextlib.suppress(DatasetError):
        return bool(verify(folder))
    return True


samples = st.tuples(st.binary(max_size=700), st.integers(1, 4))


@settings(max_examples=80, deadline=None)
@given(
    contents=st.lists(st.lists(samples, min_size=1, max_size=4), min_size=1, max_size=3),
    choice=st.randoms(use_true_random=False),
)
def test_one_damaged_byte_is_found(tmp_path_factory, contents, choice):
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, contents)
    assert verify(folder) == []

    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        place = choice.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= choice.randint(1, 255)
        path.write_bytes(damaged)
        assert is_found_damaged(folder), (path.name, place)
        path.write_bytes(whole)
    assert verify(folder) == []


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    draws = np.random.default_rng(0)
    write_dataset(folder, [[(draws.bytes(100), 2)] * 3, [(draws.bytes(50), 1)]])
    return folder


def test_every_byte_of_the_manifest_counts(dataset):
    path = dataset / "manifest.json"
    whole = path.read_bytes()
    try:
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert is_found_damaged(dataset), (place, whole[place : place + 20])
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000001.idx", "rejects.jsonl"])
def test_a_file_that_is_missing_or_longer_is_named(dataset, name):
    path = dataset / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b"\n")
        assert any(name in problem for problem in verify(dataset))
        path.unlink()
        assert any(name in problem for problem in verify(dataset))
    finally:
        path.write_bytes(whole)


def test_an_index_that_is_consistent_but_of_another_tar_is_found(dataset, tmp_path):
    write_dataset(tmp_path, [[(b"x" * 600, 1), (b"y", 1)]])
    index = (tmp_path / "train-000000.idx").read_text().replace(" 600 ", " 599 ")
    (tmp_path / "train-000000.idx").write_text(index)
    manifest = Manifest.load(tmp_path)
    (shard,) = manifest.splits["train"].shards
    lying = ShardRecord(
        **{**shard.__dict__, "index_sha256": hashlib.sha256(index.encode()).hexdigest()}
    )
    text = Manifest(**{**manifest.__dict__, "splits": {"train": Split((lying,))}}).dumps()
    (tmp_path / "manifest.json").write_text(text)

    assert [p for p in verify(tmp_path) if "does not agree with train-000000.tar" in p]


def test_deep_verification_decodes(write_rows, tmp_path, tools):
    path = write_rows(
        [{"image": "a.jpg", "captions": ["w"]}], {"a.jpg": tools.encoded(tools.picture(1))}
    )
    build(JsonlSource(str(path)), str(tmp_path / "good"), BuildOptions())
    assert verify(tmp_path / "good", deep=True) == []

    (tmp_path / "bad").mkdir()
    write_dataset(tmp_path / "bad", [[(b"\xff\xd8 no JPEG", 1)]])
    assert verify(tmp_path / "bad") == []
    (problem,) = verify(tmp_path / "bad", deep=True)
    assert "train-000000.tar: 00000000: damaged" in problem


def test_a_description_of_another_size_is_found_by_deep_verification(tmp_path, tools):
    write_dataset(tmp_path, [[(tools.encoded(tools.picture(1, 40, 32)), 1)]])
    (problem,) = verify(tmp_path, deep=True)

    assert "the image has 40 x 32 pixels, its description says 8 x 8" in problem
