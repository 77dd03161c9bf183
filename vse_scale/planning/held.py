"""The captions whose states a run holds in memory, counted before there is a run."""

from __future__ import annotations

import numpy as np

from vse_scale.config import Config
from vse_scale.data.mixing import folder_with, open_datasets
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.training.setup import tokenizer_source
from vse_shards.manifest import Manifest
from vse_shards.storage import is_url

_IMAGES = 5_000  # whose captions are cut into tokens: a second or two


def held_vectors(config: Config, tokens: int, *, pooled: bool) -> int:
    """Return the vectors that ``data.hold_captions`` holds on each rank, of both splits' captions.

    That is the state of each token, or one vector of a caption where they are pooled. Captions of
    up to 5,000 images of a split are cut into tokens, each different one counted once;
    of more images, those of 5,000 evenly spread ones stand for all, and equal captions are not
    looked for. Captions of a remote dataset, or whose vocabulary the run makes, are not read.

    Args:
        config: of the run.
        tokens: that a caption is taken to have where captions are not read.
        pooled: whether a caption's states are.

    Raises:
        DatasetError: a dataset is not there, or has no such split.
        ModelError: the tokenizer cannot be read.
    """
    folders, source = config.data.folders, tokenizer_source(config)
    validation = config.eval.split or "val"
    holder = folder_with(validation, folders)
    splits = [(folders, config.data.split), *([([holder], validation)] if holder else [])]
    if source is None or any(map(is_url, folders)):
        listed = [Manifest.load(one).split(split, one) for some, split in splits for one in some]
        captions = sum(int(one.captions_per_sample().sum()) for one in listed)
        return captions if pooled else tokens * captions
    tokenizer = CaptionTokenizer.load(source)
    different: set[tuple[int, ...]] = set()
    estimated = 0.0
    for some, split in splits:
        dataset = open_datasets(some, split)
        images = np.linspace(0, len(dataset) - 1, min(len(dataset), _IMAGES)).round().astype(int)
        texts = [one.text for image in images.tolist() for one in dataset.record(image).captions]
        ids, lengths = tokenizer.encode(texts, max_tokens=config.data.max_caption_tokens)
        if len(images) < len(dataset):
            estimated += (1.0 if pooled else float(lengths.mean())) * dataset.pairs
        else:
            rows = zip(ids.tolist(), lengths.tolist(), strict=True)
            different.update(tuple(row[:length]) for row, length in rows)
    return round(estimated) + (len(different) if pooled else sum(map(len, different)))
