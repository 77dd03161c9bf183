"""Pictures that look alike: copies, and those that were encoded, resized or lit anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vse_shards.opening import open_picture
from vse_shards.rgb import upright_rgb

LOOK = np.dtype([("shape", "<u8"), ("pixels", "<u8"), ("colours", "u1", (8, 8, 3))])
"""A picture's difference hash (dHash), a digest of its pixels, and its colours at 8 x 8."""

_DECODED = (32, 32)  # pixels that a JPEG is decoded to at least, a scale that costs little
_BITS = 8  # of 64 that may differ; of 3 million pairs of other photos, 2 have as few
# Shapes are sorted six times, from another bit each: in one of them the bits that differ come late.
_TURNS = (0, 11, 22, 33, 44, 54)
_NEIGHBOURS = 200  # in sorted order that a picture is compared with
_DISTANCE = 0.25  # of colours without brightness and contrast; other photos are at 0.33 and more
_BLOCK = 4096  # pictures whose colours are compared at once
_CONTRAST = 8.0  # of 255; pictures below show too little to be compared but by their pixels


def look_of(data: bytes) -> NDArray[np.void]:
    """Return what pictures are compared by, a record of `LOOK`.

    Data that is no picture is alike only to equal data.
    """
    look = np.zeros((), LOOK)
    try:
        image = open_picture(data)
        image.draft("RGB", _DECODED)
        image = upright_rgb(image)
    except Exception:  # decoders raise many types; the build rejects the picture, and says why
        look["pixels"] = _digest(data)
        return look
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    look["shape"] = np.packbits(grey[:, :-1] < grey[:, 1:]).view("<u8")[0]
    look["pixels"] = _digest(repr(image.size).encode() + image.tobytes())
    look["colours"] = np.asarray(image.resize((8, 8), Image.Resampling.BOX))
    return look


def first_alike(looks: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the first picture of each one's group, (pictures,) int64.

    Pictures are of one group if they look alike, or both look like a third of it.

    Args:
        looks: of the pictures in their order, (pictures,) of `LOOK`.
    """
    order = np.argsort(looks["pixels"], kind="stable")
    pixels = looks["pixels"][order]
    same = np.flatnonzero(pixels[1:] == pixels[:-1])
    first = _joined(np.arange(len(looks)), order[same], order[same + 1])
    shown = np.flatnonzero(_contrasts(looks["colours"]) >= _CONTRAST)
    for near in _near(looks["shape"][shown]):
        one, other = (shown[positions] for positions in near)
        new = first[one] != first[other]  # most pairs of a large group are known to be of it
        one, other = one[new], other[new]
        for at in range(0, len(one), _BLOCK):
            a, b = one[at : at + _BLOCK], other[at : at + _BLOCK]
            alike = _distances(looks["colours"][a], looks["colours"][b]) < _DISTANCE
            first = _joined(first, a[alike], b[alike])
    return first


def _joined(
    first: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the first picture of each one's group after the groups of pairs are joined."""
    if not len(one):
        return first
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        low, high = sorted((_root(first, a), _root(first, b)))
        first[high] = low
    while not np.array_equal(further := first[first], first):
        first = further
    return first


def _near(shapes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions of shapes that differ in few bits, in pairs."""
    for start in _TURNS:
        turned = shapes << np.uint64(start) | shapes >> np.uint64((64 - start) % 64)
        order = np.argsort(turned, kind="stable")
        turned = turned[order]
        for apart in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            near = np.bitwise_count(turned[:-apart] ^ turned[apart:]) <= _BITS
            places = np.flatnonzero(near)
            yield order[places], order[places + apart]


def _contrasts(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the standard deviation of the colours of each picture, (pictures,) float32."""
    found = np.zeros(len(colours), np.float32)
    for at in range(0, len(colours), _BLOCK):
        block = colours[at : at + _BLOCK].reshape(-1, 192)
        found[at : at + _BLOCK] = block.std(1, dtype=np.float32)
    return found


def _distances(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how far the colours in pairs differ but for brightness and contrast."""
    flat = [colours.reshape(-1, 192).astype(np.float32) for colours in (one, other)]
    a, b = ((c - c.mean(1, keepdims=True)) / c.std(1, keepdims=True) for c in flat)
    distance: NDArray[np.float32] = np.sqrt(((a - b) ** 2).mean(1))
    return distance


def _root(first: NDArray[np.int64], position: int) -> int:
    while first[position] != position:
        first[position] = position = int(first[first[position]])
    return position


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
