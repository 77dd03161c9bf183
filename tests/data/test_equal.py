"""Captions of the same words, by enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from vse_scale.data.equal import caption_keys, joined_ids, shared_captions
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.inputs.tokens import CaptionTokenizer

from .conftest import build_dataset, photo
from .test_loader import make


def test_captions_of_several_images_are_counted() -> None:
    images = [["a dog", "two cups"], ["A  dog", "a cat"], ["a cat.", "a hat", "a hat"]]
    assert shared_captions(images) == (2, 7)
    assert shared_captions([]) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_images_joined_are_those_that_a_chain_of_captions_connects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = np.stack([rng.integers(0, 12, 20), np.zeros(20, dtype=np.int64)], axis=1)
    texts = [f"words {number}" for number in rng.integers(0, 14, 20)]
    linked = (pairs[:, None, 0] == pairs[:, 0]) | (np.array(texts)[:, None] == np.array(texts))
    for _ in range(20):
        linked = (linked.astype(int) @ linked.astype(int)) > 0
    ids = joined_ids(pairs[:, 0], caption_keys(texts))
    assert np.array_equal(ids[:, None] == ids, linked)
    assert set(ids) <= set(pairs[:, 0])


def test_a_batch_of_all_ranks_is_joined_alike(tmp_path) -> None:
    # technicolor-research/dsve-loc#18: different images may have the same caption.
    rng = np.random.default_rng(0)
    texts = ["a photo of a product" if i % 2 else f"a thing number {i}" for i in range(24)]
    samples = [(photo(rng, 40, 40), [text]) for text in texts]
    dataset = ShardDataset(build_dataset(tmp_path, {"train": samples}, 12), "train")
    tokenizer = CaptionTokenizer.train(texts, 80)

    def pairs(ranks: int) -> tuple[np.ndarray, np.ndarray]:
        images, keys = [], []
        for rank in range(ranks):
            loader, _ = make(dataset, tokenizer, rank=rank, ranks=ranks, equal_captions="positives")
            with loader:
                batch = next(loader)
            images.append(batch.image_ids.numpy())
            keys.append(batch.caption_keys.numpy())
        return np.concatenate(images), np.concatenate(keys)

    images, keys = pairs(1)
    words = [dataset.record(image).captions[0].text for image in images.tolist()]
    assert len(set(images)) == 12
    joined = joined_ids(images, keys)
    for one, a in zip(joined, words, strict=True):
        assert [one == other for other in joined] == [a == b for b in words]
    for whole, parts in zip((images, keys), pairs(2), strict=True):
        assert np.array_equal(whole, parts)


def test_captions_are_the_same_by_their_words_alone() -> None:
    texts = ["A  dog", "a dog", "a dog.", "", "\ud800", "\ud800 ", "Straße", "STRASSE"]
    keys = [tuple(key) for key in caption_keys(texts).tolist()]
    same = [(0, 1), (4, 5), (6, 7)]
    for one in range(8):
        for other in range(one):
            assert (keys[one] == keys[other]) == ((other, one) in same)


def test_a_rank_reads_the_shards_of_its_own_part_whatever_captions_are(
    tmp_path, monkeypatch
) -> None:
    """One that it did not announce would end the downloads of all others at each image."""
    rng = np.random.default_rng(1)
    samples = [(photo(rng, 40, 40), [f"a thing number {i}"]) for i in range(16)]
    folder = build_dataset(tmp_path, {"train": samples}, 2)
    staging = StagingOptions(str(tmp_path / "cache"))
    dataset = ShardDataset(folder.as_uri(), "train", staging)
    tokenizer = CaptionTokenizer.train([texts[0] for _, texts in samples], 80)
    missed: list[int] = []
    touched: dict[str, set[int]] = {"negatives": set(), "positives": set()}
    read = ShardDataset._tar

    def watched(self, number):
        missed.extend({number} - self._prepared)
        touched[kind].add(number)
        return read(self, number)

    monkeypatch.setattr(ShardDataset, "_tar", watched)
    for kind in touched:
        loader, _ = make(
            dataset, tokenizer, rank=1, ranks=2, global_batch=4, streams=2, shuffle_window=2,
            cache_ahead=1, equal_captions=kind,
        )  # fmt: skip
        with loader:
            for _ in range(4):
                next(loader)
    assert missed == []
    assert touched["positives"] == touched["negatives"]
    assert len(touched["positives"]) < len(dataset.shard_sizes)
