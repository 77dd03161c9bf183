"""Datasets in columns, version 2 of the format: the same samples, opened at once.

Public reports of those whose start-up grew with their samples: mosaicml/streaming#662 (an index of
20 GB at 1.2e9 samples), NVIDIA/Megatron-Energon#231 (hours of indexing at 2.4e8 rows),
mosaicml/streaming#792 (20 minutes a start).
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from columns_made import columns_in, drawn_dataset, put_columns, put_manifest

from vse_scale.data import staging
from vse_scale.data.mixing import open_datasets
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import DatasetError
from vse_shards.manifest import Manifest
from vse_shards.tabulate import column_files
from vse_shards.upgrade import upgrade


def seen(dataset: ShardDataset) -> dict[str, object]:
    """Everything that training sees of a dataset."""
    rows = range(len(dataset))
    images, regions = dataset.holds("images"), dataset.holds("regions")
    return {
        "fingerprint": dataset.fingerprint,
        "splits": dataset.splits,
        "pairs": dataset.pairs,
        "shard_sizes": dataset.shard_sizes,
        "shard_digests": dataset.shard_digests,
        "captions": (dataset.captions_per_sample.dtype, dataset.captions_per_sample.tolist()),
        "order": dataset.source_order().tolist(),
        "records": [dataset.record(row) for row in rows],
        "names": [dataset.name(row).rpartition(": ")[2] for row in rows],
        "images": [dataset.image_bytes(row).tobytes() for row in rows] if images else None,
        "regions": [dataset.regions(row).tolist() for row in rows] if regions else None,
        "most regions": dataset.most_regions() if regions else None,
    }


@pytest.mark.parametrize("seed", range(24))
def test_an_upgraded_dataset_is_the_same(seed, tmp_path):
    folder = drawn_dataset(tmp_path / "set", seed, regions=seed % 3 == 0)
    splits = Manifest.load(folder).splits
    before = {split: seen(ShardDataset(folder, split)) for split in splits}
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}

    manifest = upgrade(folder)

    assert manifest.in_columns
    assert {split: seen(ShardDataset(folder, split)) for split in splits} == before
    assert manifest.computed_fingerprint() == before["train"]["fingerprint"]
    for path, was in files.items():
        assert path.name == "manifest.json" or (path.stat().st_mtime_ns, path.read_bytes()) == was


def test_an_index_is_read_when_its_shard_is(tmp_path):
    folder = drawn_dataset(tmp_path / "set", 8, shards=40)
    upgrade(folder)
    for path in folder.glob("*.idx"):
        path.unlink()  # of no use for training
    tables = sorted(folder.glob("train-*.idx.npy"))
    assert len(tables) > 1
    last = tables[-1].read_bytes()
    tables[-1].unlink()

    dataset = ShardDataset(folder, "train")
    assert dataset.image_bytes(0).size
    assert len(dataset._indices) == 1
    with pytest.raises(DatasetError, match=rf"{tables[-1].name}: No such file.*vse-shards upgrade"):
        dataset.image_bytes(len(dataset) - 1)
    tables[-1].write_bytes(last)
    assert dataset.image_bytes(len(dataset) - 1).size


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-1], lambda data: b"", None])
@pytest.mark.parametrize("column", ["names", "sizes", "digests", "captions"])
def test_a_damaged_column_is_refused_at_the_opening(column, damage, tmp_path):
    folder = drawn_dataset(tmp_path / "set", 1)
    upgrade(folder)
    victim = next(folder.glob(f"train.{column}.*.npy"))
    if damage is None:
        victim.unlink()
    else:
        victim.write_bytes(damage(victim.read_bytes()))

    with pytest.raises(DatasetError, match=rf"{victim.name}: .*, or copy the file again$"):
        ShardDataset(folder, "train")


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-1], lambda data: b""])
def test_a_damaged_binary_index_is_refused_and_the_named_command_mends_it(damage, tmp_path):
    folder = drawn_dataset(tmp_path / "set", 2)
    upgrade(folder)
    victim = folder / "train-000000.idx.npy"
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    with pytest.raises(DatasetError, match=r"idx\.npy: has sha256 .*run vse-shards upgrade"):
        ShardDataset(folder, "train").record(0)

    upgrade(folder)

    assert victim.read_bytes() == whole
    assert ShardDataset(folder, "train").record(0).image_id == 0


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    return file.getvalue()


HOSTILE = {
    "objects": lambda c: {"captions": pickled()},
    "a pickle": lambda c: {"sizes": pickle.dumps([1])},
    "floats": lambda c: {"captions": c["captions"].astype(np.float32)},
    "signed captions": lambda c: {"captions": c["captions"].astype(np.int8)},
    "one image more": lambda c: {"captions": np.append(c["captions"], c["captions"][:1])},
    "other captions": lambda c: {"captions": c["captions"] + c["captions"].dtype.type(1)},
    "a negative size": lambda c: {"sizes": -c["sizes"]},
    "sizes beyond 2**53": lambda c: {"sizes": c["sizes"] + (1 << 60)},
    "a scalar": lambda c: {"sizes": np.int64(3)},
    "no digests": lambda c: {"digests": c["digests"][:0]},
    "a path": lambda c: {"names": named(c, b"../../../etc/passwd.tar")},
    "no tar": lambda c: {"names": named(c, b"passwd")},
    "no text": lambda c: {"names": named(c, b"\xff\xfe.tar")},
    "control codes": lambda c: {"names": named(c, b"a\x1b[2J.tar")},
    "an endless name": lambda c: {"names": named(c, b"a" * 1000 + b".tar")},
    "a header of terabytes": lambda c: {"captions": huge()},
}


def named(columns, name: bytes):
    rows = [name.ljust(24, b"\0")] * len(columns["names"])
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def huge() -> bytes:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 44,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_columns_under_a_seal_that_fits_are_one_line(name, tmp_path):
    folder = drawn_dataset(tmp_path / "set", 4)
    upgrade(folder)
    put_columns(folder, HOSTILE[name](columns_in(folder)))

    with pytest.raises(DatasetError) as refused:
        ShardDataset(folder, "train")
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 500


ENTRIES = {
    "a split that is a path": lambda c: c["splits"].update({"../x": c["splits"].pop("train")}),
    "no columns": lambda c: c["splits"]["train"].pop("columns"),
    "columns as a list": lambda c: c["splits"]["train"].update(columns=[]),
    "no digest": lambda c: c["splits"]["train"]["columns"]["sizes"].update(sha256="../../x"),
    "a negative number": lambda c: c["splits"]["train"].update(images=-1),
    "a fingerprint that is none": lambda c: c.update(fingerprint=3),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_hostile_manifest_of_columns_is_one_line(name, tmp_path):
    folder = drawn_dataset(tmp_path / "set", 4)
    upgrade(folder)
    content = json.loads((folder / "manifest.json").read_text())
    ENTRIES[name](content)
    put_manifest(folder, content)
    with pytest.raises(DatasetError, match=r"manifest\.json: malformed: .*; build the dataset"):
        Manifest.load(folder)


def test_a_manifest_of_columns_that_was_edited_is_refused(tmp_path):
    folder = drawn_dataset(tmp_path / "set", 4)
    upgrade(folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"drawn"', '"other"'))
    with pytest.raises(DatasetError, match=r"was changed after the build: its seal is"):
        ShardDataset(folder, "train")


def test_a_version_that_nobody_knows_is_refused(tmp_path):
    folder = drawn_dataset(tmp_path / "set", 4)
    content = json.loads((folder / "manifest.json").read_text())
    put_manifest(folder, {**content, "version": 3})
    with pytest.raises(DatasetError, match=r"has version 3, this program reads 1 and 2; .*update"):
        Manifest.load(folder)


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from vse_scale.data.mixing import open_datasets
mixed = open_datasets(sys.argv[1:], "train")
assert len(mixed.shard_sizes) > 200, len(mixed.shard_sizes)
held = [mixed.image_bytes(image) for _ in range(2) for image in range(len(mixed))]
assert all(view.size and not view.flags.writeable for view in held)
from vse_scale.data.plan import Plan
plan = Plan(mixed.parts[0].captions_per_sample, seed=0, global_batch=8)
assert len(plan.part(0, 0, 0, 1).pairs) == 8
print(len(held), mixed.parts[1].source_order().shape)
"""


def test_sixty_four_files_are_enough_for_mixed_datasets_of_many_shards(tmp_path):
    folders = [many_shards(tmp_path / name) for name in ("one", "other")]
    for folder in folders:
        upgrade(folder)
    ran = subprocess.run(
        [sys.executable, "-c", FEW_FILES, *map(str, folders)], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def many_shards(folder):
    """A dataset with more shards than the process may open files."""
    for seed in range(100):
        drawn_dataset(folder, seed, shards=160)
        if len(Manifest.load(folder).splits["train"].shards) > 100:
            return folder
        shutil.rmtree(folder)
    raise AssertionError


# Remote datasets.


@pytest.fixture
def downloads(monkeypatch):
    """Names of the files that are fetched, in order."""
    names, real = [], staging.open_stream

    def counted(url):
        names.append(url.rpartition("/")[2])
        return real(url)

    monkeypatch.setattr(staging, "open_stream", counted)
    return names


def remote(url, tmp_path, **options):
    return ShardDataset(url, "train", StagingOptions(str(tmp_path / "cache"), 1.0, **options))


@pytest.mark.parametrize("regions", [False, True])
def test_a_remote_dataset_in_columns_is_the_local_one(regions, tmp_path):
    folder = drawn_dataset(tmp_path / "set", 5, regions=regions)
    upgrade(folder)
    local = seen(ShardDataset(folder, "train"))
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(folder), "/bucket/columns", recursive=True)
    try:
        assert seen(remote("memory://bucket/columns", tmp_path)) == local
    finally:
        filesystem.rm("/", recursive=True)


def test_opening_a_remote_dataset_fetches_columns_alone_and_once(tmp_path, downloads):
    folder = drawn_dataset(tmp_path / "set", 5)
    upgrade(folder)
    remote(folder.as_uri(), tmp_path)
    assert {name.split(".")[1] for name in downloads} == {"names", "sizes", "digests", "captions"}

    del downloads[:]
    dataset = remote(folder.as_uri(), tmp_path)
    assert downloads == []
    dataset.image_bytes(0)
    assert {"train-000000.tar", "train-000000.idx.npy"} <= set(downloads)
    assert not [name for name in downloads if name.endswith(".idx")]


def test_a_column_of_the_cache_that_was_damaged_is_fetched_again(tmp_path, downloads):
    folder = drawn_dataset(tmp_path / "set", 5)
    upgrade(folder)
    whole = seen(remote(folder.as_uri(), tmp_path))
    for path in (tmp_path / "cache").glob("*.npy"):
        path.write_bytes(flipped(path.read_bytes()))
    del downloads[:]
    assert seen(remote(folder.as_uri(), tmp_path)) == whole
    assert len([name for name in downloads if name.startswith("train.")]) == 4


def test_columns_go_when_their_dataset_has_no_shard_here(tmp_path):
    cache = tmp_path / "cache"
    folders = [drawn_dataset(tmp_path / str(seed), seed) for seed in (5, 6)]
    manifests = [upgrade(folder) for folder in folders]
    limit = max(tar.stat().st_size for folder in folders for tar in folder.glob("*.tar"))
    for folder, manifest in zip(folders, manifests, strict=True):
        staged = staging.StagingCache(folder.as_uri(), cache, limit)
        columns = [staged.column(column) for column in column_files(manifest)]
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        assert len(shards) > 2
        for shard in shards:
            staged.prepare([shard])
            staged.fetch(shard)
            assert all(column.exists() for column in columns)
        staged.close()
        (cache / "train.sizes.0123456789abcdef.npy.part").touch()  # as a kill leaves it
    assert set(columns) == {path for path in cache.glob("*.npy") if ".idx" not in path.name}
    staged = staging.StagingCache(folders[0].as_uri(), cache, limit)
    staged.prepare(manifests[0].splits["train"].shards[:1])
    staged.fetch(manifests[0].splits["train"].shards[0])
    assert not list(cache.glob("*.part"))


def test_a_damaged_remote_column_is_refused_and_leaves_nothing(tmp_path):
    folder = drawn_dataset(tmp_path / "set", 5)
    upgrade(folder)
    victim = next(folder.glob("train.captions.*.npy"))
    victim.write_bytes(flipped(victim.read_bytes()))
    with pytest.raises(DatasetError, match=rf"{victim.name}: has sha256 .*; copy the dataset"):
        remote(folder.as_uri(), tmp_path)
    assert not list((tmp_path / "cache").glob("*captions*.npy"))
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_damaged_column_that_is_read_from_a_url_is_refused(tmp_path):
    folder = drawn_dataset(tmp_path / "set", 5)
    upgrade(folder)
    manifest = Manifest.load(folder.as_uri())
    assert [shard.captions for shard in manifest.splits["train"].shards]
    (victim,) = folder.glob("train.captions.*.npy")
    victim.write_bytes(flipped(victim.read_bytes()))
    with pytest.raises(DatasetError, match=rf"{victim.name}: cannot be read: has sha256 .* says"):
        [shard.captions for shard in Manifest.load(folder.as_uri()).splits["train"].shards]


def test_mixed_versions_train_together(tmp_path):
    folders = [drawn_dataset(tmp_path / str(seed), seed) for seed in (6, 7)]
    before = open_datasets(folders, "train")
    images = [before.image_bytes(row).tobytes() for row in range(len(before))]
    upgrade(folders[1])
    after = open_datasets(folders, "train")
    assert after.fingerprint == before.fingerprint
    assert [after.image_bytes(row).tobytes() for row in range(len(after))] == images
