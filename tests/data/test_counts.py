import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.data.counts import CaptionCounts

TYPES = [np.uint8, np.uint16, np.int32, np.int64]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 1, 5, 255]), min_size=1, max_size=30).filter(any),
    st.integers(1, 40),
    st.sampled_from(TYPES),
)
def test_pairs_are_numbered_image_by_image(counts, repeats, dtype):
    column = np.repeat(np.array(counts, dtype), repeats)
    found = CaptionCounts(column)
    wanted = [(image, caption) for image, n in enumerate(column.tolist()) for caption in range(n)]
    assert found.pairs == len(wanted)
    assert len(found) == len(column)
    images, captions = found.find(np.arange(found.pairs))
    assert list(zip(images.tolist(), captions.tolist(), strict=True)) == wanted
    bounds = np.concatenate([[0], np.cumsum(column.astype(np.int64))])
    np.testing.assert_array_equal(found.before(np.arange(len(column) + 1)), bounds)
    for least in (1, 2, 256):
        few = np.flatnonzero(column < least)
        number, first, fewest = found.fewer(least)
        assert number == len(few)
        if number:
            assert (first, fewest) == (few[0], column.min())


@pytest.mark.parametrize("dtype", TYPES)
def test_a_mapped_column_and_its_views_are_read_from_the_file(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 7, 5000).astype(dtype)
    np.save(tmp_path / "counts.npy", values)
    mapped = np.load(tmp_path / "counts.npy", mmap_mode="r")
    changed = np.load(tmp_path / "counts.npy", mmap_mode="c")
    changed[3] = 90  # in memory alone
    columns = {  # whether the file is read
        "whole": (mapped, values, True),
        "view": (mapped[1001:], values[1001:], True),
        "part": (mapped[1001:-777], values[1001:-777], True),
        "every other": (mapped[::2], values[::2], False),
        "changed": (changed, np.array(changed), False),
        "one entry": (np.broadcast_to(dtype(3), 5000), np.full(5000, 3), False),
    }
    for name, (column, wanted, read) in columns.items():
        found, held = CaptionCounts(column), CaptionCounts(wanted.astype(np.int64))
        assert (found._file is not None) == read, name
        pairs = np.arange(held.pairs)
        assert found.pairs == held.pairs, name
        for left, right in zip(found.find(pairs), held.find(pairs), strict=True):
            np.testing.assert_array_equal(left, right)
        assert found.fewer(2) == held.fewer(2), name


def test_nothing_is_copied(tmp_path):
    column = np.full(100_000, 2, np.uint8)
    assert np.shares_memory(CaptionCounts(column)._counts, column)
