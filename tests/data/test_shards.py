import io
import json
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from datasets_made import drawn_scenes
from PIL import Image

from vse_scale.data import shards
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError


def tar_members(folder, split):
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                yield path.name, member.name, tar.extractfile(member).read()


def test_everything_equals_what_tarfile_reads(dataset_folder):
    dataset = ShardDataset(dataset_folder, "train")
    members = list(tar_members(dataset_folder, "train"))
    images = [member for member in members if member[1].endswith(".jpg")]
    records = [json.loads(data) for _, name, data in members if name.endswith(".json")]
    assert len(dataset) == len(images) == 23
    assert dataset.shard_sizes == [9, 9, 5]
    for number, (shard, name, data) in enumerate(images):
        assert dataset.image_bytes(number).tobytes() == data
        assert dataset.name(number) == f"{dataset_folder}: {shard}: {name}"
        record, raw = dataset.record(number), records[number]
        assert record.image_id == raw["image_id"]
        assert [(c.id, c.text) for c in record.captions] == [
            (c["id"], c["text"]) for c in raw["captions"]
        ]
        assert (record.width, record.height) == Image.open(io.BytesIO(data)).size
    counts = [len(raw["captions"]) for raw in records]
    np.testing.assert_array_equal(dataset.captions_per_sample, counts)
    assert dataset.pairs == sum(counts)


def test_the_order_of_the_source_comes_back(dataset_folder):
    train = ShardDataset(dataset_folder, "train")
    ids = [train.record(image).image_id for image in range(len(train))]
    assert ids != sorted(ids)  # the fixture numbers images in the order of the source
    assert [ids[image] for image in train.source_order()] == sorted(ids)


def test_images_are_read_only_views(dataset_folder):
    dataset = ShardDataset(dataset_folder, "val")
    with pytest.raises(ValueError, match="read-only"):
        dataset.image_bytes(0)[0] = 0


def test_an_image_beyond_the_split_is_refused(dataset_folder):
    dataset = ShardDataset(dataset_folder, "val")
    for image in (-1, 5):
        with pytest.raises(IndexError, match="of a split of 5"):
            dataset.record(image)


def test_an_unknown_split_names_those_that_are_there(dataset_folder):
    with pytest.raises(DatasetError, match=r"'test'.*train, val"):
        ShardDataset(dataset_folder, "test")


@pytest.mark.parametrize("victim", ["train-000001.tar", "train-000001.idx"])
def test_a_changed_file_is_named_with_both_values(dataset_folder, tmp_path, victim):
    folder = tmp_path / "copy"
    shutil.copytree(dataset_folder, folder)
    size = (folder / victim).stat().st_size
    with (folder / victim).open("ab") as file:
        file.write(b"\0" * 10)
    with pytest.raises(DatasetError, match=victim) as caught:
        ShardDataset(folder, "train")
    if victim.endswith(".tar"):
        assert f"{size:,}" in str(caught.value)
        assert f"{size + 10:,}" in str(caught.value)


def test_a_missing_folder_is_a_dataset_error(tmp_path):
    with pytest.raises(DatasetError, match="nowhere"):
        ShardDataset(tmp_path / "nowhere", "train")


def test_only_the_opened_split_is_looked_at(dataset_folder, tmp_path):
    """What an index of all costs at each opening is counted at mosaicml/streaming#662."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset_folder, folder)
    for name in ("val-000000.tar", "val-000000.idx"):
        (folder / name).unlink()
    assert len(ShardDataset(folder, "train")) == 23
    with pytest.raises(DatasetError, match=r"val-000000\.tar: No such file"):
        ShardDataset(folder, "val")


def test_of_many_shards_an_index_is_read_and_compared_with_its_shard(
    dataset_folder, tmp_path, monkeypatch
):
    folder = tmp_path / "copy"
    shutil.copytree(dataset_folder, folder)
    with (folder / "train-000001.idx").open("ab") as file:
        file.write(b"\n")
    whole = ShardDataset(dataset_folder, "train")
    monkeypatch.setattr(shards, "_FEW_SHARDS", 1)
    dataset = ShardDataset(folder, "train")
    assert dataset.holds("images")  # of the first shard; no other is opened for it
    for image in (0, 8, 18, 22, 0):
        assert dataset.image_bytes(image).tobytes() == whole.image_bytes(image).tobytes()
        assert dataset.record(image) == whole.record(image)
        assert len(dataset._indices) == 1
    with pytest.raises(DatasetError, match=r"train-000001\.idx: has sha256 .*; build the dataset"):
        dataset.image_bytes(9)
    with pytest.raises(DatasetError, match=r"train-000000\.tar: .*: its sample has no \.npy"):
        dataset.regions(0)


def test_counts_of_captions_take_a_byte_an_image(dataset_folder):
    assert ShardDataset(dataset_folder, "train").captions_per_sample.dtype == np.uint8


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from vse_scale.data.shards import ShardDataset
dataset = ShardDataset(sys.argv[1], "train")
assert len(dataset.shard_sizes) == 120
held = [dataset.image_bytes(image) for _ in range(2) for image in range(len(dataset))]
assert all(bytes(view[:2]) == b"\\xff\\xd8" and not view.flags.writeable for view in held)
assert dataset.record(119).captions
print(len(held), dataset.source_order().shape)
"""


def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    folder = drawn_scenes(tmp_path, 150, seed=0, shard_samples=1)
    done = subprocess.run(
        [sys.executable, "-c", MANY, folder], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == "240"
