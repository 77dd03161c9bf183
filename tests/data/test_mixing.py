import hashlib
import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vse_scale.config import Config, DataConfig
from vse_scale.data.loader import Loader
from vse_scale.data.mixing import MixedDataset, open_datasets
from vse_scale.data.plan import Plan
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import CheckpointError, ConfigError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.training.run_state import RunState

MIXTURES = st.lists(
    st.tuples(
        st.lists(st.integers(1, 4), min_size=1, max_size=30),  # captions of each image
        st.floats(0.05, 20.0),  # weight
    ),
    min_size=1,
    max_size=4,
)


def mixed(datasets, batch, mode="pairs", seed=0, **options):
    return Plan(
        [count for counts, _ in datasets for count in counts],
        seed=seed,
        global_batch=batch,
        mode=mode,
        dataset_sizes=[len(counts) for counts, _ in datasets],
        weights=[weight for _, weight in datasets],
        **options,
    )


def epoch_of(plan, epoch):
    batches = [plan.batch(epoch, step) for step in range(plan.steps_per_epoch)]
    return np.concatenate([batch.pairs for batch in batches]), np.concatenate(
        [batch.passes for batch in batches]
    )


def owners(datasets, pairs):
    bounds = np.cumsum([0, *(len(counts) for counts, _ in datasets)])
    return np.searchsorted(bounds, pairs[:, 0], side="right") - 1


@settings(deadline=None, max_examples=60)
@given(MIXTURES, st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_an_epoch_has_the_stated_shares_within_one_batch(datasets, batch, seed, epoch):
    units = sum(sum(counts) for counts, _ in datasets)
    plan = mixed(datasets, min(batch, units), seed=seed)
    pairs, _ = epoch_of(plan, epoch)
    found = np.bincount(owners(datasets, pairs), minlength=len(datasets))
    weights = np.array([weight for _, weight in datasets])
    # At most a pair is lost to rounding, and less than a batch at the epoch's end.
    assert (np.abs(found - units * weights / weights.sum()) < plan.global_batch + 1).all()
    counts = np.array([count for one, _ in datasets for count in one])
    assert (pairs[:, 1] < counts[pairs[:, 0]]).all()


@settings(deadline=None, max_examples=40)
@given(MIXTURES, st.integers(0, 2**32 - 1))
def test_every_dataset_is_gone_through_before_any_of_it_comes_again(datasets, seed):
    plan = mixed(datasets, 1, seed=seed)
    epochs = [epoch_of(plan, epoch) for epoch in range(3)]
    pairs = np.concatenate([pairs for pairs, _ in epochs])
    passes = np.concatenate([passes for _, passes in epochs])
    seen = {}
    for (image, caption), pass_index in zip(pairs.tolist(), passes.tolist(), strict=True):
        seen.setdefault((image, caption), []).append(pass_index)
    # A pair occurs once in a pass, and the n-th time in pass n.
    for times in seen.values():
        assert sorted(times) == list(range(len(times)))
    for number, (counts, _) in enumerate(datasets):
        own = owners(datasets, pairs) == number
        times = np.bincount(passes[own]) if own.any() else np.array([])
        assert (times[:-1] == sum(counts)).all()


@pytest.mark.parametrize("mode", ["pairs", "images"])
def test_ranks_and_position_cut_and_resume_the_same_order(mode):
    datasets = [([3] * 20, 1.0), ([2] * 7, 2.5)]
    options = {"captions_per_image": 2} if mode == "images" else {}
    plan = mixed(datasets, 8, mode, seed=5, **options)
    again = mixed(datasets, 8, mode, seed=5, **options)
    positions = list(itertools.product(range(3), range(plan.steps_per_epoch)))
    for epoch, step in reversed(positions):
        whole = plan.batch(epoch, step)
        for ranks in (1, 2, 4):
            parts = [again.part(epoch, step, rank, ranks) for rank in range(ranks)]
            for name in ("pairs", "passes", "valid"):
                joined = np.concatenate([getattr(part, name) for part in parts])
                np.testing.assert_array_equal(joined, getattr(whole, name))


def test_captions_of_an_image_take_turns_over_its_passes():
    plan = mixed([([4] * 3, 9.0), ([1] * 30, 1.0)], 1, "images", seed=2)
    chosen = {}
    for epoch in range(4):
        pairs, passes = epoch_of(plan, epoch)
        for (image, caption), pass_index in zip(pairs.tolist(), passes.tolist(), strict=True):
            if image < 3:
                chosen.setdefault(image, {})[pass_index] = caption
    for turns in chosen.values():
        in_order = [turns[pass_index] for pass_index in sorted(turns)]
        assert len(in_order) > 8
        for start in range(len(in_order) - 3):
            assert sorted(in_order[start : start + 4]) == [0, 1, 2, 3]


def test_without_weights_every_pair_comes_once():
    sizes = [20, 7]
    plan = Plan([3] * 27, seed=5, global_batch=1, dataset_sizes=sizes, weights=None)
    pairs, passes = epoch_of(plan, 4)
    assert len({tuple(pair) for pair in pairs.tolist()}) == 81
    assert (passes == 4).all()


def test_a_window_knows_no_weights():
    with pytest.raises(ConfigError, match=r"set `shuffle_window`=0, or leave `weights` out"):
        mixed([([1, 1], 1.0), ([1], 1.0)], 1, shard_sizes=[2, 1], shuffle_window=1)


def test_a_dataset_without_pairs_is_refused():
    with pytest.raises(ConfigError, match=r"gives 3\.0 to dataset 2, which has no pairs"):
        mixed([([1, 1], 1.0), ([0], 3.0)], 1)


def test_a_mixture_of_datasets_that_rows_were_appended_to_is_known_at_once():
    """Of 6 that grew 24 times each there are 244 million former ones."""
    mixture = object.__new__(MixedDataset)
    mixture.parts = tuple(
        SimpleNamespace(fingerprint=f"{n}", former={f"{n}.{age}": 1 for age in range(24)})
        for n in range(6)
    )
    then = ["0.0", "1", "2.7", "3", "4.23", "5"]
    began = time.monotonic()
    assert mixture.grew_from("not looked at", then)
    assert not mixture.grew_from("", [*then[:5], "6"])
    assert not mixture.grew_from("", then[:5])
    # Of a checkpoint without them: the last rows may well have been the only ones.
    assert mixture.grew_from(joined(["0", "1", "2", "3.23", "4", "5.22"]))
    assert not mixture.grew_from("another")
    assert not mixture.grew_from(joined(["0", "1", "2", "3", "4", "5"])), "it is the same"
    assert time.monotonic() - began < 30


def joined(fingerprints):
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()


def test_a_run_does_not_go_on_with_other_weights():
    def config(weights):
        data = {"path": ["a", "b"], "weights": weights}
        return Config.model_validate({"data": data, "run": {"dir": "r"}})

    then = config([2, 1])
    state = RunState(step=3, fingerprint="f", config=then.model_dump(mode="json"))
    state.check(then, "f", Path("here"))
    with pytest.raises(CheckpointError, match=r"data\.weights was \[2\.0, 1\.0\], is \[1\.0"):
        state.check(config([1, 1]), "f", Path("here"))


class TestDatasets:
    @pytest.fixture
    def both(self, dataset_folder):
        # The same folder twice: two splits would not do, both must have the split.
        return open_datasets([dataset_folder, dataset_folder], "train")

    def test_images_are_numbered_through(self, both, dataset_folder):
        one = ShardDataset(dataset_folder, "train")
        assert isinstance(both, MixedDataset)
        assert (len(both), both.pairs) == (2 * len(one), 2 * one.pairs)
        for image in (0, len(one) - 1):
            for number in (image, image + len(one)):
                assert both.image_bytes(number).tobytes() == one.image_bytes(image).tobytes()
                assert both.record(number) == one.record(image)
                assert both.name(number) == one.name(image)
        for image in (-1, 2 * len(one)):
            with pytest.raises(IndexError):
                both.record(image)

    def test_the_fingerprint_is_of_all_in_order(self, dataset_folder, both):
        one = ShardDataset(dataset_folder, "train")
        val = ShardDataset(dataset_folder, "val")
        val.fingerprint = "other"
        prints = {
            MixedDataset(parts).fingerprint for parts in ([one, val], [val, one], [one], [one, one])
        }
        assert len(prints | {one.fingerprint}) == 5
        assert open_datasets([dataset_folder], "train").fingerprint == one.fingerprint

    @pytest.mark.parametrize("remote", [(True, True), (False, True)])
    def test_remote_ones_give_the_batches_of_local_ones(
        self, both, dataset_folder, remote, tmp_path
    ):
        folders = [dataset_folder.as_uri() if url else dataset_folder for url in remote]
        staged = open_datasets(folders, "train", StagingOptions(str(tmp_path / "cache")))
        assert staged.remote
        assert not both.remote
        assert staged.fingerprint == both.fingerprint
        local = self.batches(both, dataset_folder, 8)
        for here, there in zip(local, self.batches(staged, dataset_folder, 8), strict=True):
            assert torch.equal(here.images, there.images)
            assert torch.equal(here.token_ids, there.token_ids)
        counts = staged.staged
        tars = list(dataset_folder.glob("train-*.tar"))
        assert counts["fetched_shards"] == len(tars)  # each once, though two datasets read it
        assert counts["found_shards"] >= (len(tars) if all(remote) else 0)
        assert counts["fetched_bytes"] >= sum(tar.stat().st_size for tar in tars)
        assert both.staged == {}

    def test_each_dataset_prepares_its_own_shards(self, dataset_folder, tmp_path):
        options = StagingOptions(str(tmp_path / "cache"))
        mixed = open_datasets([dataset_folder, dataset_folder.as_uri()], "train", options)
        here, there = mixed.parts
        assert len(here.shard_sizes) == 3
        sizes = sorted((t.stat().st_size for t in dataset_folder.glob("train-*.tar")), reverse=True)
        assert [mixed.room(n) for n in (0, 1, 2, 6)] == [sum(sizes[:n]) for n in (0, 1, 2, 6)]
        mixed.prepare([2, 4], then=[1, 5])
        for image in (len(mixed) - 1, len(here) + here.shard_sizes[0]):  # of shards 5 and 4
            assert mixed.image_bytes(image).size
        assert mixed.staged["fetched_shards"] == 2
        assert there.staged == mixed.staged
        assert here.staged == {}

    def batches(self, dataset, dataset_folder, count, rank=0, ranks=1, start=(0, 0)):
        config = DataConfig(
            path=[str(dataset_folder)] * 2, weights=[3, 1], global_batch=12, threads=1
        )
        plan = Plan(
            dataset.captions_per_sample,
            seed=3,
            global_batch=12,
            shard_sizes=dataset.shard_sizes,
            dataset_sizes=[len(part) for part in dataset.parts],
            weights=config.weights,
        )
        texts = [c.text for i in range(len(dataset)) for c in dataset.record(i).captions]
        with Loader(
            dataset,
            plan,
            CaptionTokenizer.train(texts, 200),
            InputSpec(ImageSpec.preset("imagenet", 32)),
            config,
            seed=3,
            rank=rank,
            ranks=ranks,
            device=torch.device("cpu"),
            start=start,
        ) as loader:
            return [next(loader) for _ in range(count)]

    def test_loading_is_shared_out_and_goes_on_to_the_bit(self, both, dataset_folder):
        whole = self.batches(both, dataset_folder, 20)
        parts = [self.batches(both, dataset_folder, 20, rank, 2) for rank in range(2)]
        resumed = self.batches(both, dataset_folder, 5, start=(whole[15].epoch, whole[15].step))
        for name in ("images", "image_ids", "token_lengths"):
            for step, batch in enumerate(whole):
                joined = torch.cat([getattr(part[step], name) for part in parts])
                assert torch.equal(joined, getattr(batch, name))
            for left, right in zip(whole[15:], resumed, strict=True):
                assert torch.equal(getattr(left, name), getattr(right, name))

    def test_an_image_that_comes_twice_in_an_epoch_is_varied_twice(self, both, dataset_folder):
        seen = {}
        for batch in self.batches(both, dataset_folder, 15):  # of one epoch
            assert batch.epoch == 0
            for number, pixels in zip(batch.image_ids.tolist(), batch.images, strict=True):
                seen.setdefault(number, []).append(pixels)
        twice = [pixels for pixels in seen.values() if len(pixels) > 5]
        assert twice
        for pixels in twice:
            flat = {image.numpy().tobytes() for image in pixels}
            assert len(flat) == len(pixels)
