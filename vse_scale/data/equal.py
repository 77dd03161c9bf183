"""Captions of the same words: their number in a split, and images that they make no negatives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from vse_scale.data.plan import Indices
from vse_shards.caption_table import words_of


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


def joined_ids(pairs: Indices, texts: Sequence[str]) -> Indices:
    """Return ids (B,) of the pairs' images, equal for images that share a caption in the batch.

    Pairs with equal ids are never each other's negatives. Sharing carries on: an image that shares
    one caption with a second and another with a third joins them.

    Args:
        pairs: (B, 2) image and caption of each pair of a global batch.
        texts: B captions.
    """
    parent = {image: image for image in pairs[:, 0].tolist()}

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    first: dict[str, int] = {}
    for (image, _), text in zip(pairs.tolist(), texts, strict=True):
        one, other = root(image), root(first.setdefault(words_of(text), image))
        parent[max(one, other)] = min(one, other)
    ids = pairs[:, 0].copy()
    ids[:] = [root(image) for image in pairs[:, 0].tolist()]
    return ids
