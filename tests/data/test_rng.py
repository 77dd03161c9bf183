import numpy as np
import pytest

from vse_scale.data.rng import Stream, philox4x32, uniform

# Known answers of Random123's philox4x32-10: counter, key, result.
KNOWN = [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = tuple(np.array([value], np.uint64) for value in counter)
    assert [int(word[0]) for word in philox4x32(words, key)] == expected


def test_random_numbers_depend_on_their_own_pair_alone():
    pairs = np.array([[7, 0], [3, 2], [7, 1]])
    together = uniform(5, 1, pairs, Stream.CROP, 6)
    for row, pair in zip(together, pairs, strict=True):
        np.testing.assert_array_equal(row, uniform(5, 1, pair[None], Stream.CROP, 6)[0])
    np.testing.assert_array_equal(together, uniform(5, 1, pairs, Stream.CROP, 30)[:, :6])


def test_every_part_of_the_key_matters():
    pair = np.array([[7, 1]])
    others = [
        uniform(6, 1, pair, Stream.CROP, 8),
        uniform(5, 2, pair, Stream.CROP, 8),
        uniform(5, 1, np.array([[8, 1]]), Stream.CROP, 8),
        uniform(5, 1, np.array([[7, 2]]), Stream.CROP, 8),
        uniform(5, 1, pair, Stream.WORDS, 8),
    ]
    numbers = [uniform(5, 1, pair, Stream.CROP, 8), *others]
    assert len({row.tobytes() for row in numbers}) == len(numbers)


def test_random_numbers_are_uniform_and_below_one():
    pairs = np.stack([np.arange(20_000), np.zeros(20_000, int)], axis=1)
    numbers = uniform(0, 0, pairs, Stream.CELLS, 10)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    # 200,000 numbers in 20 bins: chi-square with 19 degrees of freedom, 99.99% lie below 50.8.
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50.8
    neighbours = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]
    assert abs(neighbours) < 0.03
