"""Captions of the same words: their number in a split, and images that they make no negatives."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vse_scale.data.plan import Indices
from vse_scale.world.gather import Exchange
from vse_shards.caption_table import words_of

BYTES_OF_KEYS = 24  # that a pair sends to each other rank: its image, and 128 bits of its words


def shared_captions(images: Iterable[Iterable[str]]) -> tuple[int, int]:
    """Return how many of the captions of ``images`` another image has too, and how many there are.

    Args:
        images: the captions of each.
    """
    owners: dict[str, int] = {}
    counts: dict[str, int] = defaultdict(int)
    shared: set[str] = set()
    total = 0
    for image, texts in enumerate(images):
        for text in texts:
            words = words_of(text)
            total += 1
            counts[words] += 1
            if owners.setdefault(words, image) != image:
                shared.add(words)
    return sum(counts[words] for words in shared), total


def caption_keys(texts: Sequence[str]) -> Indices:
    """Return 128 bits for the words of each caption, (P, 2) int64: equal where the words are.

    Ranks send these to each other in place of captions, which differ in length.
    """
    digests = (
        hashlib.blake2b(words_of(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="<i8").reshape(-1, 2).astype(np.int64)


def joined_ids(images: Indices, keys: Indices) -> Indices:
    """Return ids (B,) of the pairs' images, equal for images that share a caption in the batch.

    Pairs with equal ids are never each other's negatives. Sharing carries on: an image that shares
    one caption with a second and another with a third joins them.

    Args:
        images: (B,) the image of each pair of a global batch.
        keys: (B, 2) of the pairs' captions, as `caption_keys` makes them.
    """
    parent = {image: image for image in images.tolist()}

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    first: dict[tuple[int, ...], int] = {}
    for image, key in zip(images.tolist(), map(tuple, keys.tolist()), strict=True):
        one, other = root(image), root(first.setdefault(key, image))
        parent[max(one, other)] = min(one, other)
    return np.array([root(image) for image in images.tolist()], dtype=np.int64)


def ids_over_ranks(images: Tensor, keys: Tensor, exchange: Exchange) -> Tensor:
    """Return `joined_ids` (P,) of this rank's part of the batch that all ranks' parts make up.

    Args:
        images: (P,) int64, the image of each pair of this rank.
        keys: (P, 2) int64, as `caption_keys` makes them.
        exchange: sends `BYTES_OF_KEYS` a pair.
    """
    whole = exchange.gather(torch.cat([images[:, None], keys], dim=1)).cpu().numpy()
    start = exchange.rank * len(images)
    ids = joined_ids(whole[:, 0], whole[:, 1:])[start : start + len(images)]
    return torch.from_numpy(ids).to(images.device)
