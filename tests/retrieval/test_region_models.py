"""A model of region features: embedded from a dataset that has them, searched by words."""

import numpy as np
import pytest
import torch
from PIL import Image

from vse_scale.config import ModelConfig
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError, ModelError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.embed import embed
from vse_scale.retrieval.encode import encode_split
from vse_scale.retrieval.encoder import Encoder
from vse_scale.retrieval.index import Index, embed_picture, embed_query
from vse_scale.retrieval.page import write_page
from vse_scale.retrieval.saved import open_embeddings
from vse_scale.retrieval.sources import DatasetCaptions, DatasetImages
from vse_scale.world.processes import ALONE
from vse_shards.build import BuildOptions, build
from vse_shards.sources.precomp import PrecompSource

IMAGES, REGIONS, CHANNELS = 40, 5, 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    source = tmp_path_factory.mktemp("regions")
    drawn = np.random.default_rng(1).standard_normal((IMAGES, REGIONS, CHANNELS))
    np.save(source / "test_ims.npy", drawn.astype(np.float32))
    (source / "test_ids.txt").write_text("".join(f"{n}\n" for n in range(IMAGES)))
    words = ("ball", "dog", "ring", "tree")
    lines = [f"a {words[n % 4]} number {n} {way}\n" for n in range(IMAGES) for way in "xy"]
    (source / "test_caps.txt").write_text("".join(lines))
    build(PrecompSource(str(source)), str(source / "set"), BuildOptions(shard_samples=16))
    return ShardDataset(source / "set", "test")


@pytest.fixture(scope="module")
def encoder(dataset):
    texts = [c.text for row in range(len(dataset)) for c in dataset.record(row).captions]
    tokenizer = CaptionTokenizer.train_words(texts, 1)
    config = ModelConfig.model_validate(
        {
            "embed_dim": 16,
            "image": {"backbone": "regions", "region_channels": CHANNELS},
            "text": {"encoder": "bigru", "word_channels": 12},
        }
    )
    torch.manual_seed(0)
    model = VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id).eval()
    return Encoder(model, tokenizer, torch.device("cpu"), 8, 1)


def test_a_split_is_embedded_as_evaluation_does_and_found(encoder, dataset, tmp_path):
    sides = {
        "images": DatasetImages(encoder, dataset),
        "captions": DatasetCaptions(encoder, dataset),
    }
    source = {"data": str(dataset.folder), "split": "test"}
    out = tmp_path / "out"
    embed(
        sides, out, {"model": "m", "source": source},
        batch=8, processes=ALONE, progress=lambda *_: None,
    )  # fmt: skip
    expected = encode_split(
        encoder.model, encoder.tokenizer, dataset, batch=8, device="cpu", threads=1
    )
    assert torch.equal(open_embeddings(out).images, expected.images)

    index = Index(out)
    text = dataset.record(7).captions[0].text
    side, (hits,) = index.search(embed_query(encoder, text), 3)
    own = expected.captions[14:15] @ expected.images.T
    assert [hit.row for hit in hits] == own[0].topk(3).indices.tolist()
    assert index.picture(side, hits[0]) is None  # there are no pixels to show
    write_page(tmp_path / "page.html", index, side, [(text, None, hits)])
    assert str(hits[0].id) in (tmp_path / "page.html").read_text()


def test_pixels_are_refused_by_name(encoder, scenes, tmp_path):
    with pytest.raises(DatasetError, match="not every sample of split 'val' has region features"):
        DatasetImages(encoder, ShardDataset(scenes, "val"))
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
    with pytest.raises(ModelError, match="a region model takes a detector's features; give --data"):
        embed_picture(encoder, tmp_path / "photo.jpg")
