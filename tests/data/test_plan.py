from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.data.plan import Plan
from vse_scale.errors import ConfigError

some = settings(max_examples=40, deadline=None)
PINNED = [[2, 0], [3, 0], [0, 1], [2, 1], [0, 0], [2, 2]]
PINNED_IMAGES = [[3, 0], [3, 2], [2, 3], [2, 2], [5, 1], [5, 3]]

captions_per_sample = st.lists(st.integers(0, 6), min_size=1, max_size=30).filter(any)


def epoch_of(plan, epoch, rank=0, ranks=1):
    parts = [plan.part(epoch, step, rank, ranks) for step in range(plan.steps_per_epoch)]
    return np.concatenate([p.pairs for p in parts]), np.concatenate([p.valid for p in parts])


def all_pairs(counts):
    return [(image, caption) for image, n in enumerate(counts) for caption in range(n)]


@some
@given(captions_per_sample, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.data())
def test_an_epoch_visits_every_pair_once_on_any_number_of_ranks(counts, seed, ranks, data):
    batch = ranks * data.draw(st.integers(1, 8))
    window = data.draw(st.integers(0, 3))
    sizes = [len(counts) // 2, len(counts) - len(counts) // 2]
    plan = Plan(
        counts,
        seed=seed,
        global_batch=batch,
        last_batch="wrap",
        shard_sizes=sizes,
        shuffle_window=window,
    )
    seen = []
    for rank in range(ranks):
        pairs, valid = epoch_of(plan, 3, rank, ranks)
        seen += [tuple(pair) for pair in pairs[valid].tolist()]
    assert sorted(seen) == all_pairs(counts)


@some
@given(captions_per_sample, st.integers(0, 100), st.integers(1, 12))
def test_dropping_leaves_out_less_than_a_batch_and_repeats_nothing(counts, seed, batch):
    if sum(counts) < batch:
        with pytest.raises(ConfigError, match="no step"):
            Plan(counts, seed=seed, global_batch=batch)
        return
    plan = Plan(counts, seed=seed, global_batch=batch)
    pairs, valid = epoch_of(plan, 0)
    assert valid.all()
    assert len(pairs) == sum(counts) // batch * batch
    assert len(set(map(tuple, pairs.tolist()))) == len(pairs)


@some
@given(captions_per_sample, st.integers(0, 100), st.integers(1, 12))
def test_what_completes_the_last_batch_is_the_start_of_the_epoch(counts, seed, batch):
    plan = Plan(counts, seed=seed, global_batch=batch, last_batch="wrap")
    pairs, valid = epoch_of(plan, 1)
    total = sum(counts)
    assert valid.tolist() == [row < total for row in range(len(pairs))]
    np.testing.assert_array_equal(pairs, pairs[np.arange(len(pairs)) % total])


@some
@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.data())
def test_images_mode_visits_each_caption_once_per_cycle(counts, seed, data):
    k = data.draw(st.integers(1, min(counts)))
    batch = k * data.draw(st.integers(1, 5))
    plan = Plan(
        counts,
        seed=seed,
        global_batch=batch,
        mode="images",
        captions_per_image=k,
        last_batch="wrap",
    )
    history = {image: [] for image in range(len(counts))}
    for epoch in range(2 * max(counts)):
        pairs, valid = epoch_of(plan, epoch)
        groups = pairs.reshape(-1, k, 2)
        assert (groups[:, :, 0] == groups[:, :1, 0]).all(), "an image's k pairs stand together"
        kept = groups[valid.reshape(-1, k)[:, 0]]
        assert sorted(kept[:, 0, 0].tolist()) == list(range(len(counts)))
        for group in kept:
            chosen = group[:, 1].tolist()
            assert len(set(chosen)) == k, "never the same caption twice in an epoch"
            history[int(group[0, 0])] += chosen
    for image, chosen in history.items():
        n = counts[image]
        for start in range(0, len(chosen) // n * n, n):
            assert sorted(chosen[start : start + n]) == list(range(n))


@some
@given(st.integers(0, 50), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_a_plan_made_later_goes_on_exactly(epoch, step, seed):
    counts = [5, 3, 4, 5, 2, 5, 5]
    ran = Plan(counts, seed=seed, global_batch=4)
    position = (epoch, step)
    for _ in range(9):
        fresh = Plan(counts, seed=seed, global_batch=4)
        np.testing.assert_array_equal(ran.batch(*position).pairs, fresh.batch(*position).pairs)
        position = ran.following(*position)


def test_positions_run_through_the_epochs():
    plan = Plan([5] * 4, seed=0, global_batch=8)
    assert plan.steps_per_epoch == 2
    assert [plan.following(0, 0), plan.following(0, 1)] == [(0, 1), (1, 0)]
    with pytest.raises(IndexError, match="epoch 0, step 2: an epoch has steps 0 to 1"):
        plan.batch(0, 2)


def test_epochs_and_seeds_differ_and_captions_orders_differ_between_images():
    counts = [5] * 200
    orders = {
        Plan(counts, seed=seed, global_batch=1000).batch(epoch, 0).pairs.tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    plan = Plan(counts, seed=0, global_batch=200, mode="images")
    first = Counter(plan.batch(0, 0).pairs[:, 1].tolist())
    assert all(20 <= first[caption] <= 60 for caption in range(5))


def test_the_order_of_an_epoch_is_pinned():
    """Runs resume across versions of numpy only while its permutation stays what it is."""
    plan = Plan([2, 0, 3, 1], seed=7, global_batch=6)
    assert plan.batch(0, 0).pairs.tolist() == PINNED
    images = Plan([4] * 6, seed=7, global_batch=6, mode="images", captions_per_image=2)
    assert images.batch(1, 1).pairs.tolist() == PINNED_IMAGES


def test_a_window_reads_few_shards_at_a_time():
    sizes = [10] * 8
    plan = Plan([2] * 80, seed=1, global_batch=20, shard_sizes=sizes, shuffle_window=2)
    batches = [plan.batch(0, step).pairs for step in range(plan.steps_per_epoch)]
    for start in range(0, 8, 2):
        window = np.concatenate(batches[start : start + 2])
        assert len(set((window[:, 0] // 10).tolist())) == 2
    shards = [tuple(dict.fromkeys((batch[:, 0] // 10).tolist())) for batch in batches]
    assert sorted({s for both in shards for s in both}) == list(range(8))
    assert any(len(both) == 2 for both in shards), "samples of a window are mixed"


@st.composite
def windowed_plans(draw):
    """A plan over shards of all sizes, the shard of every image, and if it reads few at a time."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=9))
    counts = draw(st.lists(st.integers(1, 4), min_size=sum(sizes), max_size=sum(sizes)))
    mode = draw(st.sampled_from(["pairs", "images"]))
    units = sum(counts) if mode == "pairs" else len(counts)
    window, order = draw(st.integers(0, 4)), draw(st.sampled_from(["held", "computed"]))
    streams = draw(st.integers(1, min(units, 4))) if order == "computed" else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vse_scale.data.plan._FEW", 1 << 20 if order == "held" else 0)
        plan = Plan(
            counts,
            seed=draw(st.integers(0, 2**32 - 1)),
            global_batch=streams * draw(st.integers(1, units // streams)),
            mode=mode,
            last_batch=draw(st.sampled_from(["drop", "wrap"])),
            shard_sizes=sizes,
            shuffle_window=window,
            streams=streams,
        )
    return plan, np.repeat(np.arange(len(sizes)), sizes), window > 0 or plan.streams > 1


@some
@given(windowed_plans(), st.integers(1, 5))
def test_the_shards_of_a_batch_are_known_before_it(planned, steps):
    plan, shard_of, _ = planned
    position, announced = (0, 0), []
    for _ in range(min(2 * plan.steps_per_epoch, 60)):
        now, _ = plan.shards(*position)
        assert len(set(now)) == len(now)
        assert set(shard_of[plan.batch(*position).pairs[:, 0]].tolist()) <= set(now)
        announced.append(set(now))
        position = plan.following(*position)
    for start in range(len(announced)):
        together = set().union(*announced[start : start + steps])
        assert len(together) <= plan.shards_within(steps)


@some
@given(windowed_plans(), st.integers(0, 3))
def test_the_shards_ahead_are_those_that_are_read_next(planned, ahead):
    plan, shard_of, windowed = planned
    wraps = plan.steps_per_epoch * plan.global_batch > plan.units
    position = (0, 0)
    for _ in range(min(2 * plan.steps_per_epoch, 60)):
        now, then = plan.shards(*position, ahead)
        assert not set(now) & set(then)
        assert len(then) <= ahead
        later = plan.following(*position)
        while windowed and not wraps and later[0] <= position[0] + 1:
            new = [shard for shard in plan.shards(*later)[0] if shard not in now]
            if new:
                if plan.streams == 1:
                    few = min(ahead, len(new))
                    assert then[:few] == new[:few]
                else:  # of each stream in turn, whichever needs them first
                    assert set(new) <= set(plan.shards(*position, len(shard_of))[1])
                break
            later = plan.following(*later)
        position = plan.following(*position)


def test_a_window_announces_few_shards():
    plan = Plan([2] * 800, seed=1, global_batch=20, shard_sizes=[100] * 8, shuffle_window=2)
    sizes = [len(plan.shards(0, step)[0]) for step in range(plan.steps_per_epoch)]
    assert max(sizes) == 2  # 20 divides the 400 pairs of a window
    assert len(plan.shards(0, 3, 3)[1]) == 3
    assert plan.shards_within(5) == 6
    whole = Plan([2] * 800, seed=1, global_batch=20, shard_sizes=[100] * 8)
    assert whole.shards(0, 3, 3) == (list(range(8)), [])
    assert whole.shards_within(1) == 8


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([5] * 4, {"global_batch": 32}, "`global_batch` is 32, but an epoch has 20 pairs"),
        (
            [5] * 4,
            {"global_batch": 8, "mode": "images", "captions_per_image": 3},
            "`global_batch` is 8, not divisible by 3 captions per image; set 6",
        ),
        (
            [5, 2, 5],
            {"global_batch": 6, "mode": "images", "captions_per_image": 3},
            r"`captions_per_image` is 3, but 1 of 3 images .* image 1, has 2.* at most 2",
        ),
        (
            [5, 0],
            {"global_batch": 1, "mode": "images"},
            r"`captions_per_image` is 1, but 1 of 2 .*; set `mode`=pairs",
        ),
        ([0, 0], {"global_batch": 1}, "holds 0 pairs"),
    ],
)
def test_a_plan_that_cannot_be_says_why(counts, options, message):
    with pytest.raises(ConfigError, match=message):
        Plan(counts, seed=0, **options)


def test_parts_must_hold_whole_images():
    plan = Plan([5] * 8, seed=0, global_batch=8, mode="images", captions_per_image=4)
    with pytest.raises(ConfigError, match="8, not divisible by 4 ranks x 4 captions"):
        plan.part(0, 0, 0, 4)
