import numpy as np
import pytest
import torch

from vse_scale.config import Config, DataConfig
from vse_scale.data.loader import Loader
from vse_scale.data.mixing import open_datasets
from vse_scale.data.plan import Plan
from vse_scale.data.regions import region_batches
from vse_scale.data.rng import Stream, uniform
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import ConfigError, DatasetError
from vse_scale.inputs.spec import InputSpec, RegionSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.encode import encode_split
from vse_scale.training.setup import open_data
from vse_shards.build import BuildOptions, build
from vse_shards.sources.precomp import PrecompSource

CPU = torch.device("cpu")
MOST = 5


def precomp(folder, features, first):
    """Features (I, K, C) with two captions each, built; ids count from ``first``."""
    source = folder / "precomp"
    source.mkdir(parents=True)
    count = len(features)
    np.save(source / "train_ims.npy", features)
    (source / "train_ids.txt").write_text("".join(f"{first + n}\n" for n in range(count)))
    lines = [f"a thing number {first + n} seen {way}\n" for n in range(count) for way in "xy"]
    (source / "train_caps.txt").write_text("".join(lines))
    build(PrecompSource(str(source)), str(folder / "set"), BuildOptions(shard_samples=4))
    return folder / "set"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six images of three regions in float32, and seven of five in float16."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("regions")
    return [
        precomp(folder / "three", rng.standard_normal((6, 3, 8)).astype(np.float32), 100),
        precomp(folder / "five", rng.standard_normal((7, 5, 8)).astype(np.float16), 200),
    ]


@pytest.fixture(scope="module")
def dataset(folders):
    return open_datasets(folders, "train")


@pytest.fixture(scope="module")
def tokenizer(dataset):
    texts = [c.text for i in range(len(dataset)) for c in dataset.record(i).captions]
    return CaptionTokenizer.train_words(texts, 1)


def take(dataset, folders, tokenizer, count, rank=0, ranks=1, start=(0, 0), **options):
    config = DataConfig(path=[str(folder) for folder in folders], global_batch=8, **options)
    plan = Plan(
        dataset.captions_per_sample,
        seed=4,
        global_batch=8,
        mode=config.mode,
        captions_per_image=config.captions_per_image,
        shard_sizes=dataset.shard_sizes,
        shuffle_window=config.shuffle_window,
    )
    with Loader(
        dataset,
        plan,
        tokenizer,
        InputSpec(regions=RegionSpec(8, MOST)),
        config,
        seed=4,
        rank=rank,
        ranks=ranks,
        device=CPU,
        start=start,
        grid_cells=MOST,
    ) as loader:
        return [next(loader) for _ in range(count)]


def test_a_batch_holds_every_images_own_regions(dataset, folders, tokenizer):
    for batch in take(dataset, folders, tokenizer, 6):
        assert batch.images.dtype == torch.float32
        assert batch.images.shape[1] == batch.region_lengths.max()
        for number, rows, length in zip(
            batch.image_ids.tolist(), batch.images, batch.region_lengths.tolist(), strict=True
        ):
            own = dataset.regions(number)
            assert length == len(own) == (3 if number < 6 else 5)
            np.testing.assert_array_equal(rows[:length].numpy(), own.astype(np.float32))
            assert (rows[length:] == 0).all()


@pytest.mark.parametrize("options", [{}, {"mode": "images", "captions_per_image": 2}])
def test_ranks_together_equal_one_rank_and_resume(dataset, folders, tokenizer, options):
    whole = take(dataset, folders, tokenizer, 7, **options)
    parts = [take(dataset, folders, tokenizer, 7, rank, 2, **options) for rank in range(2)]
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        for name in ("region_lengths", "cell_draws", "image_ids", "token_lengths"):
            joined = torch.cat([getattr(piece, name) for piece in pieces])
            assert torch.equal(joined, getattr(batch, name)), name
        rows = [row for piece in pieces for row in piece.images]
        for row, other in zip(rows, batch.images, strict=True):
            assert torch.equal(row[:3], other[:3])
    start = (whole[4].epoch, whole[4].step)
    for left, right in zip(
        whole[4:], take(dataset, folders, tokenizer, 3, start=start, **options), strict=True
    ):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.region_lengths, right.region_lengths)


def test_remote_regions_are_those_of_the_folder(folders, tokenizer, tmp_path):
    local, url = ShardDataset(folders[1], "train"), folders[1].as_uri()
    remote = ShardDataset(url, "train", StagingOptions(str(tmp_path)))
    assert (remote.most_regions(), remote.name(6)) == (
        5,
        local.name(6).replace(str(local.folder), url),
    )
    for left, right in zip(
        take(local, folders[1:], tokenizer, 3, shuffle_window=1),
        take(remote, folders[1:], tokenizer, 3, shuffle_window=1),
        strict=True,
    ):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.token_ids, right.token_ids)


def test_regions_are_dropped_by_draws_that_are_the_pairs_own(dataset, folders, tokenizer):
    batch = take(dataset, folders, tokenizer, 1)[0]
    plan = Plan(dataset.captions_per_sample, seed=4, global_batch=8)
    pairs = plan.batch(0, 0).pairs
    expected = uniform(4, 0, pairs, Stream.CELLS, 1 + MOST)
    np.testing.assert_array_equal(batch.cell_draws.numpy(), expected)


def test_batches_for_evaluation_come_in_the_order_asked_for(dataset):
    order = [12, 0, 7, 3, 5]
    found = list(region_batches(dataset, order, batch=2, device=CPU))
    assert [len(one.features) for one in found] == [2, 2, 1]
    rows = [row for one in found for row in one.features]
    lengths = [n for one in found for n in one.lengths.tolist()]
    for number, row, length in zip(order, rows, lengths, strict=True):
        np.testing.assert_array_equal(row[:length].numpy(), dataset.regions(number))


def config(folders, **image):
    return Config.model_validate(
        {
            "data": {"path": [str(f) for f in folders], "global_batch": 8},
            "run": {"dir": "r"},
            "model": {
                "embed_dim": 8,
                "image": image or {"backbone": "regions", "region_channels": 8},
                "text": {"encoder": "bigru", "word_channels": 6},
            },
        }
    )


def test_a_split_of_regions_is_encoded(dataset, folders, tokenizer):
    torch.manual_seed(0)
    model = VSEModel(config(folders).model, tokenizer.vocab_size, tokenizer.pad_id)
    five = ShardDataset(folders[1], "train")
    found = encode_split(model, tokenizer, five, batch=3, device="cpu", threads=1)
    assert model.training
    model.eval()
    with torch.no_grad():
        regions = torch.from_numpy(np.stack([five.regions(i) for i in range(7)])).float()
        torch.testing.assert_close(found.images, model.encode_images(regions))
        text = five.record(2).captions[1].text
        ids, lengths = map(torch.from_numpy, tokenizer.encode([text]))
        torch.testing.assert_close(found.captions[5:6], model.encode_captions(ids, lengths))


def test_what_does_not_fit_is_said_before_training(folders, dataset_folder):
    open_data(config(folders), ranks=1)
    with pytest.raises(ConfigError, match=r"region_channels is 12, and .* has 8; set it so"):
        open_data(config(folders, backbone="regions", region_channels=12), ranks=1)
    with pytest.raises(ConfigError, match=r"max_regions is 4, and .* has 5; set it so"):
        open_data(config(folders, backbone="regions", region_channels=8, max_regions=4), ranks=1)
    with pytest.raises(DatasetError, match=r"not every sample .* has region features"):
        open_data(config([dataset_folder]), ranks=1)
    with pytest.raises(DatasetError, match="has an image; build it with them, or set model"):
        open_data(config(folders, backbone="tiny"), ranks=1)
