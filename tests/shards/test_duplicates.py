from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vse_shards.duplicates import Digests

shards = st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=6)


@settings(max_examples=100, deadline=None)
@given(shards)
def test_images_of_equal_digest_are_grouped_in_order_of_appearance(contents):
    digests, expected = Digests(), {}
    for number, shard in enumerate(contents):
        stem = f"train-{number:06d}"
        # 0 stands for a sample without an image.
        digests.add("train", stem, [f"{value:016x}" + "a" * 16 if value else "" for value in shard])
        for row, value in enumerate(shard):
            if value:
                expected.setdefault(value, []).append(("train", stem, row))
    groups = list(digests.groups())

    assert groups == [places for _, places in sorted(expected.items()) if len(places) > 1]
