import functools
import gc
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
import torch

from vse_scale.config import DataConfig
from vse_scale.data import resize, staging
from vse_scale.data.decode import Decoder, Request
from vse_scale.data.images import crop_geometry
from vse_scale.data.loader import Loader
from vse_scale.data.plan import Plan
from vse_scale.data.producer import batches_apart
from vse_scale.data.rng import Stream, uniform
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_scale.errors import ConfigError, DatasetError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer

from .conftest import build_dataset, photo, reference

CPU = torch.device("cpu")
SPEC = ImageSpec.preset("imagenet", 32)
SEED = 11
TENSORS = ["images", "token_lengths", "image_ids", "valid", "cell_draws"]
CELLS = 4


@pytest.fixture(scope="module")
def dataset(dataset_folder):
    return ShardDataset(dataset_folder, "train")


@pytest.fixture(scope="module")
def tokenizer(dataset):
    texts = [c.text for i in range(len(dataset)) for c in dataset.record(i).captions]
    return CaptionTokenizer.train(texts, 200)


def make(dataset, tokenizer, *, rank=0, ranks=1, start=(0, 0), seed=SEED, **options):
    options = {"global_batch": 12, "threads": 1, "word_drop": 0.4, **options}
    config = DataConfig(path=str(dataset.folder), **options)
    plan = Plan(
        dataset.captions_per_sample,
        seed=seed,
        global_batch=config.global_batch,
        mode=config.mode,
        captions_per_image=config.captions_per_image,
        last_batch=config.last_batch,
        shard_sizes=dataset.shard_sizes,
        shuffle_window=config.shuffle_window,
        streams=config.streams,
    )
    loader = Loader(
        dataset,
        plan,
        tokenizer,
        InputSpec(SPEC, max_tokens=config.max_caption_tokens),
        config,
        seed=seed,
        rank=rank,
        ranks=ranks,
        device=CPU,
        start=start,
        grid_cells=CELLS,
    )
    return loader, plan


def take(count, *args, **options):
    loader, _ = make(*args, **options)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def tokens(batch):
    return [
        row[:n].tolist()
        for row, n in zip(batch.token_ids, batch.token_lengths.tolist(), strict=True)
    ]


def assert_equal(left, right):
    assert (left.epoch, left.step) == (right.epoch, right.step)
    for name in [*TENSORS, "token_ids", "image_rows"]:
        assert torch.equal(getattr(left, name), getattr(right, name)), name


MODES = [
    {"mode": "pairs"},
    {"mode": "images", "captions_per_image": 3},
    {"mode": "pairs", "last_batch": "wrap", "shuffle_window": 2},
]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_equal_one_rank(dataset, tokenizer, options, ranks):
    count = 10  # more than an epoch
    whole = take(count, dataset, tokenizer, **options)
    parts = [
        take(count, dataset, tokenizer, rank=rank, ranks=ranks, **options) for rank in range(ranks)
    ]
    assert whole[-1].epoch > 0
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        assert {(piece.epoch, piece.step) for piece in pieces} == {(batch.epoch, batch.step)}
        for name in TENSORS:
            joined = torch.cat([getattr(piece, name) for piece in pieces])
            assert torch.equal(joined, getattr(batch, name)), name
        assert [row for piece in pieces for row in tokens(piece)] == tokens(batch)


@pytest.mark.parametrize("options", MODES)
def test_a_resumed_loader_goes_on_bit_for_bit(dataset, tokenizer, options):
    ran = take(11, dataset, tokenizer, **options)
    for position in (3, 8, 10):
        start = (ran[position].epoch, ran[position].step)
        resumed = take(11 - position, dataset, tokenizer, start=start, **options)
        for left, right in zip(ran[position:], resumed, strict=True):
            assert_equal(left, right)


def test_a_finished_epoch_resumes_at_the_next(dataset, tokenizer):
    loader, plan = make(dataset, tokenizer, start=(0, 7))
    assert plan.steps_per_epoch == 7
    batch = next(loader)
    loader.close()
    assert (batch.epoch, batch.step) == (1, 0)


def test_threads_and_queues_change_nothing(dataset, tokenizer):
    for left, right in zip(
        take(5, dataset, tokenizer),
        take(5, dataset, tokenizer, threads=3, prefetch=1),
        strict=True,
    ):
        assert_equal(left, right)


@pytest.mark.parametrize("options", MODES)
def test_pixels_captions_and_ids_belong_together(dataset, tokenizer, options):
    """Every row, made again from the files alone, in no order and with no thread."""
    batches = take(9, dataset, tokenizer, **options)
    _, plan = make(dataset, tokenizer, **options)
    k = options.get("captions_per_image", 1)
    for batch in batches:
        planned = plan.batch(batch.epoch, batch.step)
        np.testing.assert_array_equal(batch.image_ids, planned.pairs[:, 0])
        np.testing.assert_array_equal(batch.valid, planned.valid)
        assert len(batch.images) == 12 // k
        np.testing.assert_array_equal(batch.image_rows, np.repeat(np.arange(12 // k), k))
        for row in (0, 4, 11):
            image, caption = planned.pairs[row]
            pair = planned.pairs[row : row + 1]
            draws = functools.partial(uniform, SEED, batch.epoch, pair, Stream.WORDS)
            text = dataset.record(image).captions[caption].text
            ids, length = tokenizer.encode([text], draws, 0.4)
            assert tokens(batch)[row] == ids[0, : length[0]].tolist()
            first = planned.pairs[row // k * k][None]
            crop = crop_geometry(uniform(SEED, batch.epoch, first, Stream.CROP, 4), (0.6, 1.0), 0.5)
            expected = decode_alone(dataset, image, crop)
            assert torch.equal(batch.images[batch.image_rows[row]], expected)
            cells = uniform(SEED, batch.epoch, first, Stream.CELLS, 1 + CELLS)
            np.testing.assert_array_equal(batch.cell_draws[batch.image_rows[row]], cells[0])


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """24 shards of three images."""
    rng = np.random.default_rng(8)
    samples = [(photo(rng, 48, 64), [f"a red ball {i}", f"two dogs {i}"]) for i in range(72)]
    return build_dataset(tmp_path_factory.mktemp("many"), {"train": samples}, shard_samples=3)


def test_remote_shards_give_the_same_batches_within_the_limit(
    many_shards, tokenizer, tmp_path, monkeypatch
):
    """The loader tells the cache what comes next, so that no epoch fetches a shard twice."""
    opened = []
    real = staging.open_stream
    monkeypatch.setattr(
        staging, "open_stream", lambda path: opened.append(path.rsplit("/", 1)[1]) or real(path)
    )
    local = ShardDataset(many_shards, "train")
    largest = max(path.stat().st_size for path in many_shards.glob("*.tar"))
    options = {"shuffle_window": 2, "global_batch": 6, "prefetch": 1, "cache_ahead": 2}
    _, plan = make(local, tokenizer, **options)
    # A full queue of one, two batches in the graph, one trained on and one requested.
    assert batches_apart(1) == 5
    room = plan.shards_within(5) + 2
    assert room < 24
    cache = StagingOptions(str(tmp_path / "cache"), room * largest / 10**9, ahead=2)
    remote = ShardDataset(many_shards.as_uri(), "train", cache)
    loaders = [make(dataset, tokenizer, **options)[0] for dataset in (local, remote)]
    order = [local._shards[n].name for epoch in (0, 1) for n in plan._order._windows.order(epoch)]
    for _ in range(plan.steps_per_epoch):
        left, right = (next(loader) for loader in loaders)
        assert_equal(left, right)
        with remote._cache._locked("room"):  # none is thrown out while they are counted
            sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")]
        assert sum(sizes) <= cache.limit_bytes
    for loader in loaders:
        loader.close()

    tars = [name for name in opened if name.endswith(".tar")]
    assert set(tars) >= set(order[:24])
    # Some are fetched for the next epoch too, before this one's last batch is taken.
    begun = order[24 : 24 + room]
    twice = [name for name, count in Counter(tars).items() if count > 1 + (name in begun)]
    assert not twice, "a shard was fetched twice in the epoch"
    # Four threads fetch at once, and who finds no room tries again, so neighbours change places.
    first = list(dict.fromkeys(tars))
    assert all(abs(place - order.index(name)) <= 8 for place, name in enumerate(first))


def test_the_next_window_is_there_before_it_is_read(many_shards, tokenizer, tmp_path, monkeypatch):
    cache = StagingOptions(str(tmp_path / "cache"), ahead=2)
    remote = ShardDataset(many_shards.as_uri(), "train", cache)
    options = {"shuffle_window": 2, "global_batch": 2, "prefetch": 1, "cache_ahead": 2}
    loader, plan = make(remote, tokenizer, **options)
    names = [remote._shards[n].name for n in plan._order._windows.order(0)]
    next(loader)
    end = time.monotonic() + 20
    while len(staged := {p.name.split("-", 1)[1] for p in (tmp_path / "cache").glob("*.tar")}) < 4:
        assert time.monotonic() < end
    loader.close()

    assert staged == set(names[:4])  # its own window, and the next


def test_a_shard_that_cannot_be_staged_stops_the_run_by_name(many_shards, tokenizer, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(many_shards, bad)
    with (bad / "train-000004.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"rot")
    remote = ShardDataset(bad.as_uri(), "train", StagingOptions(str(tmp_path / "cache")))
    loader, _ = make(remote, tokenizer, global_batch=72)
    with pytest.raises(DatasetError, match=r"train-000004\.tar: has sha256"):
        list(itertools.islice(loader, 3))


def decode_alone(dataset, image, geometry):
    request = Request(np.array([image]), None, geometry)
    decoder = Decoder(dataset, [request], batch=1, spec=SPEC, device=CPU, threads=1, training=True)
    return next(decoder)[0][0]


def test_an_image_is_decoded_once_for_its_captions(dataset, tokenizer, monkeypatch):
    asked = []
    read = ShardDataset.image_bytes
    monkeypatch.setattr(
        ShardDataset, "image_bytes", lambda self, image: asked.append(image) or read(self, image)
    )
    batches = take(2, dataset, tokenizer, mode="images", captions_per_image=3)
    images = [image for batch in batches for image in batch.image_ids[::3].tolist()]
    assert asked[:8] == images


def test_augmentation_varies_with_the_epoch_and_the_pair(dataset, tokenizer):
    batches = take(14, dataset, tokenizer)
    seen = {}
    for batch in batches:
        for image, pixels in zip(batch.image_ids.tolist(), batch.images, strict=True):
            seen.setdefault(image, set()).add(pixels.numpy().tobytes())
    visits = sum(len(batch.image_ids) for batch in batches)
    assert sum(map(len, seen.values())) == visits


def test_waiting_is_measured(dataset, tokenizer):
    loader, _ = make(dataset, tokenizer, prefetch=2)
    assert next(loader).wait_seconds > 0
    time.sleep(0.5)
    assert next(loader).wait_seconds < 0.1
    loader.close()


@pytest.fixture
def damaged(tmp_path):
    """A dataset whose fifth image went bad after the build, unseen by the manifest."""
    rng = np.random.default_rng(0)
    samples = [(photo(rng, 64, 80), [f"a red ball {i}"]) for i in range(12)]
    folder = build_dataset(tmp_path, {"train": samples}, shard_samples=6)
    dataset = ShardDataset(folder, "train")
    victim = dataset.image_bytes(4)
    with (folder / "train-000000.tar").open("r+b") as file:
        offset = file.read().index(victim.tobytes())
        file.seek(offset + 300)
        file.write(bytes(len(victim) - 300))
    return ShardDataset(folder, "train")


def test_a_damaged_image_stops_the_run_by_name(damaged, tokenizer):
    loader, _ = make(damaged, tokenizer, global_batch=3)
    with pytest.raises(DatasetError, match=r"train-000000\.tar: 00000004\.jpg cannot be decoded"):
        list(itertools.islice(loader, 5))
    with pytest.raises(DatasetError, match="cannot be decoded"):
        next(loader)


def test_other_errors_of_the_thread_surface_too(dataset, tokenizer, monkeypatch):
    def broken(self, image):
        raise OSError("the disk is gone")

    monkeypatch.setattr(ShardDataset, "record", broken)
    loader, _ = make(dataset, tokenizer)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(loader)


def test_a_batch_that_does_not_divide_is_refused_at_once(dataset, tokenizer):
    with pytest.raises(ConfigError, match="12, not divisible by 5 ranks"):
        make(dataset, tokenizer, ranks=5)


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vse-")]


def test_closing_ends_the_thread_and_keeps_the_tensors(dataset, tokenizer):
    earlier = set(alive())  # a loader of an earlier test may not have been collected yet
    loader, _ = make(dataset, tokenizer, prefetch=1)
    batch = next(loader)
    before = batch.images.clone()
    time.sleep(0.2)  # the queue is full, the thread waits for room
    own = set(alive()) - earlier
    assert sorted(thread.name for thread in own) == ["vse-loader", "vse-resize_0"]
    loader.close()
    loader.close()
    assert not any(thread.is_alive() for thread in own)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            next(loader)
    del loader
    gc.collect()
    assert torch.equal(batch.images, before)


def test_a_forgotten_loader_is_collected(dataset, tokenizer):
    loader, _ = make(dataset, tokenizer)
    next(loader)
    gone = weakref.ref(loader)
    del loader
    gc.collect()
    assert gone() is None
    assert not alive()


def test_a_loader_may_be_collected_by_a_thread_that_works_for_it(dataset, tokenizer, monkeypatch):
    """Which its background thread waits for, so that it must not wait for that one."""
    forgotten = threading.Event()
    collectors = []

    def collect(*arguments, **options):
        assert forgotten.wait(30)
        if gone() is not None:
            collectors.append(threading.current_thread().name)
            gc.collect()
        real(*arguments, **options)

    real = resize.resize
    monkeypatch.setattr(resize, "resize", collect)
    gc.disable()
    try:
        loader, _ = make(dataset, tokenizer)
        loader.itself = loader
        gone = weakref.ref(loader)
        del loader
        forgotten.set()
        for thread in alive():
            thread.join(30)
    finally:
        gc.enable()
    assert gone() is None
    assert collectors == ["vse-resize_0"]
    assert not alive()


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "del loader", "loader.close()"])
def test_the_interpreter_exits_without_closing(dataset, tokenizer, tmp_path, ending):
    tokenizer.save(tmp_path)
    script = f"""
import torch
from vse_scale.config import DataConfig
from vse_scale.data import staging
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import InputSpec
from vse_scale.data.loader import Loader
from vse_scale.data.plan import Plan
from vse_scale.data.producer import batches_apart
from vse_scale.data.shards import ShardDataset
dataset = ShardDataset({str(dataset.folder)!r}, "train")
loader = Loader(
    dataset, Plan(dataset.captions_per_sample, seed=0, global_batch=8),
    CaptionTokenizer.load({str(tmp_path)!r}), InputSpec(ImageSpec.preset("imagenet", 32)),
    DataConfig(path=".", prefetch=1), seed=0, rank=0, ranks=1, device=torch.device("cpu"),
)
print(next(loader).images.shape)
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "[8, 32, 32, 3]" in done.stdout


def test_real_photos_load(shared, tmp_path):
    root = shared / "data" / "flickr8k"
    lines = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()[:40]]
    samples = [((root / "images" / r["image"]).read_bytes(), r["captions"]) for r in lines]
    folder = build_dataset(tmp_path, {"train": samples}, shard_samples=20)
    dataset = ShardDataset(folder, "train")
    tokenizer = CaptionTokenizer.load(shared / "data" / "bert-base-uncased")
    loader, plan = make(
        dataset, tokenizer, global_batch=50, word_drop=0.0, crop_scale=(1.0, 1.0), flip=0.0
    )
    batches = [next(loader) for _ in range(plan.steps_per_epoch)]
    loader.close()
    seen = set()
    for batch in batches:
        for row, number in enumerate(batch.image_ids.tolist()):
            image = dataset.record(number).image_id
            text = tokens(batch)[row]
            caption = [tokenizer.encode([c])[0][0].tolist() for c in lines[image]["captions"]]
            seen.add((image, caption.index(text)))
            expected = reference(samples[image][0], 32)
            assert np.abs(batch.images[row].numpy() - expected).max() <= 1
    distinct = sum(len({str(c) for c in map(str.lower, line["captions"])}) for line in lines)
    assert len(seen) >= distinct - 3
