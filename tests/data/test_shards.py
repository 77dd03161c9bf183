import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

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
