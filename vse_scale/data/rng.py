"""Random numbers as a function of their purpose, independent of rank, worker and order.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a function
of a key and a counter. The key is (seed, pass); the counter is (block, image, caption, stream).
So the crop of a pair is the same on any rank, in any worker, and after any resume, and a longer
row of random numbers begins with the shorter one. It is written in numpy because a generator of
``np.random.Philox`` has a single counter, and building one for every pair costs more than
tokenising.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

Words = tuple[
    npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]
]


class Stream(IntEnum):
    """Purpose of random numbers; those of different streams are independent."""

    CAPTION_ORDER = 0
    CROP = 1
    WORDS = 2
    CELLS = 3


def philox4x32(counter: Words, key: tuple[int, int | npt.NDArray[np.uint64]]) -> Words:
    """Return the four output words of Philox4x32-10 for every counter.

    Args:
        counter: four arrays of 32-bit values held as uint64, of shapes that broadcast together.
        key: two 32-bit values; the second may be an array that broadcasts with the counter.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key[0], np.asarray(key[1], dtype=np.uint64)
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + np.uint64(_WEYL[1])) & _LOW
    return c0, c1, c2, c3


def uniform(
    seed: int,
    passes: int | npt.NDArray[np.int64],
    pairs: npt.NDArray[np.int64],
    stream: Stream,
    count: int,
) -> npt.NDArray[np.float32]:
    """Return ``count`` random numbers for each pair, uniform in [0, 1).

    Args:
        seed: of the run, below 2**32.
        passes: number of earlier passes over the pair's dataset, one for all or (P,), below
            2**32: the epoch, unless datasets are mixed.
        pairs: (P, 2) image and caption indices.
        stream: purpose of the random numbers.
        count: random numbers per pair.

    Returns:
        (P, count) float32, multiples of 2**-24: the largest still lies below 1.
    """
    image_indices, caption_indices = pairs.astype(np.uint64).T
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None, :]
    stream_word = np.full((1, 1), stream, np.uint64)
    counter = (blocks, image_indices[:, None], caption_indices[:, None], stream_word)
    key = np.asarray(passes, dtype=np.uint64).reshape(-1, 1)
    words = np.stack(np.broadcast_arrays(*philox4x32(counter, (seed, key))), axis=-1)
    bits = words.reshape(len(pairs), -1)[:, :count] >> np.uint64(8)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def mixed_seed(*numbers: int) -> int:
    """Return a 63-bit seed from ``numbers``, well spread even where they are small."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
