from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from vse_scale.data import staging
from vse_scale.data.cache_files import size_of
from vse_scale.data.mixing import caption_texts
from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingCache, StagingOptions
from vse_scale.errors import DatasetError
from vse_shards.build import BuildOptions, build
from vse_shards.errors import AccessError
from vse_shards.manifest import Manifest
from vse_shards.sources.jsonl import JsonlSource

PLENTY = 10**9
SHARDS = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six shards of one image."""
    folder = tmp_path_factory.mktemp("staging")
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(SHARDS):
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            (folder / f"{number}.jpg").write_bytes(file.getvalue())
            rows.write(json.dumps({"image": f"{number}.jpg", "captions": ["words"]}) + "\n")
    source = JsonlSource(str(folder / "rows.jsonl"))
    build(source, str(folder / "out"), BuildOptions(shard_samples=1))
    return folder / "out"


@pytest.fixture
def order(dataset):
    return Manifest.load(dataset).splits["train"].shards


@pytest.fixture
def make(dataset, tmp_path):
    """Open a cache of ``dataset`` in ``tmp_path / "cache"``."""
    made = []

    def make(source=None, limit=PLENTY):
        made.append(StagingCache((source or dataset).as_uri(), tmp_path / "cache", limit))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def downloads(monkeypatch):
    """Number of times that each file was opened at the source."""
    counts: Counter[str] = Counter()
    guard = threading.Lock()
    real = staging.open_stream

    def counted(path):
        with guard:
            counts[path.rsplit("/", 1)[1]] += 1
        return real(path)

    monkeypatch.setattr(staging, "open_stream", counted)
    return counts


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def kept(tmp_path, suffix=".tar"):
    """The files of the cache, by their names at the source."""
    return {p.name.split("-", 1)[1] for p in (tmp_path / "cache").iterdir() if p.suffix == suffix}


def largest(order):
    return max(shard.bytes for shard in order)


# The cache.


def test_staged_shards_are_those_of_the_source(dataset, order, make, downloads):
    cache = make()
    cache.prepare(order)
    for shard in order:
        assert cache.fetch(shard).read_bytes() == (dataset / shard.name).read_bytes()
        assert cache.index(shard) == (dataset / shard.index_name).read_bytes()
        assert cache.index(shard)

    assert set(downloads.values()) == {1}
    assert len(downloads) == 2 * SHARDS


def test_what_is_prepared_is_fetched_before_it_is_asked_for(order, make, downloads, tmp_path):
    make().prepare(order[1:4])
    wait_until(lambda: kept(tmp_path) == {shard.name for shard in order[1:4]})

    assert set(downloads) == {shard.name for shard in order[1:4]}


def test_the_limit_holds_and_the_least_recently_used_goes_first(order, make, tmp_path):
    limit = 3 * largest(order)
    cache = make(limit=limit)
    for clock, number in enumerate((0, 1, 2, 0, 3, 4), start=1):
        cache.index(order[number])
        cache.prepare([order[number]])
        os.utime(cache.fetch(order[number]), ns=(clock * 10**9, clock * 10**9))
        files = (tmp_path / "cache").glob("*.tar*")
        assert sum(p.stat().st_size for p in files if p.suffix != ".lock") <= limit

    assert kept(tmp_path) == {order[number].name for number in (0, 3, 4)}
    assert kept(tmp_path, ".idx") == {order[number].index_name for number in (0, 3, 4)}


def test_a_shard_in_use_is_not_thrown_out(order, make):
    one, other = make(limit=2 * largest(order)), make(limit=2 * largest(order))
    one.prepare([order[0]])
    held = one.fetch(order[0])
    other.prepare([order[1]])
    other.fetch(order[1])
    other.prepare(order[1:3])
    with pytest.raises(
        DatasetError,
        match=r"all of its shards are in use; raise limit_bytes, or give each run its own folder",
    ):
        other.fetch(order[2])
    assert held.exists()

    other.prepare([order[2]])
    assert other.fetch(order[2]).exists()
    assert held.exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_a_damaged_download_is_refused_and_leaves_nothing(dataset, order, make, tmp_path, damage):
    shutil.copytree(dataset, tmp_path / "bad")
    path = tmp_path / "bad" / order[2].name
    data = bytearray(path.read_bytes())
    data[700] ^= damage == "flipped"
    path.write_bytes({"cut": data[:-512], "longer": data + b"x"}.get(damage, data))
    cache = make(tmp_path / "bad")
    cache.prepare(order)
    with pytest.raises(
        DatasetError, match=r"train-000002\.tar: has (sha256|more than) .* the manifest"
    ):
        cache.fetch(order[2])
    for shard in (*order[:2], *order[3:]):
        cache.fetch(shard)
    assert kept(tmp_path) == {shard.name for shard in order} - {order[2].name}
    assert not kept(tmp_path, ".part")


def test_what_came_damaged_once_is_fetched_again(dataset, order, make, monkeypatch):
    real, spoilt = staging.open_stream, []

    def spoil_the_first(path):
        if not spoilt:
            spoilt.append(path)
            return io.BytesIO(b"<html>503 Service Unavailable</html>")
        return real(path)

    monkeypatch.setattr(staging, "open_stream", spoil_the_first)
    cache = make()
    cache.prepare(order[:1])
    wait_until(lambda: spoilt)

    assert cache.fetch(order[0]).read_bytes() == (dataset / order[0].name).read_bytes()


def test_a_staged_shard_that_was_cut_since_is_fetched_again(dataset, order, make, downloads):
    cache = make()
    cache.prepare(order[:1])
    path = cache.fetch(order[0])
    cache.prepare([])
    os.truncate(path, 100)
    cache.prepare(order[:1])

    assert cache.fetch(order[0]).read_bytes() == (dataset / order[0].name).read_bytes()
    assert downloads[order[0].name] == 2


def test_any_error_of_a_storage_is_one_line_that_names_the_file(order, make, monkeypatch):
    class NoCredentialsError(Exception):  # botocore's is no OSError
        pass

    def refuse(path):
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(staging, "open_stream", refuse)
    cache = make()
    cache.prepare(order)
    with pytest.raises(AccessError, match=r"train-000000\.tar: the storage fails: .* credentials"):
        cache.fetch(order[0])


def test_a_full_disk_says_what_to_do(order, make, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staging.os, "fsync", full)
    cache = make()
    cache.prepare(order)
    with pytest.raises(
        DatasetError, match=r"No space left on device; make room, or lower limit_bytes, or set f"
    ):
        cache.fetch(order[0])


# Processes.

SLOW = """
import sys, time
from pathlib import Path
from vse_scale.data import staging
from vse_scale.data.cache_files import size_of
from vse_shards.manifest import Manifest
source, folder, log, limit, pause = sys.argv[1:]
real = staging.open_stream

class Slow:
    def __init__(self, path):
        with open(log, "a") as file:
            file.write(path.rsplit("/", 1)[1] + "\\n")
        self.file = real(path)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def read(self, size):
        time.sleep(float(pause))
        return self.file.read(1000)

staging.open_stream = Slow
cache = staging.StagingCache(source, Path(folder), int(limit))
shards = Manifest.load(source).splits["train"].shards
print("ready", flush=True)
for number, shard in enumerate(shards):
    cache.prepare(shards[number:number + 3])
    cache.index(shard)
    assert cache.fetch(shard).stat().st_size == shard.bytes
print("done", flush=True)
"""


@pytest.fixture
def start(dataset, tmp_path):
    """Start a process that reads all shards through the cache."""
    started = []

    def start(limit=PLENTY, pause=0.002):
        arguments = [dataset.as_uri(), tmp_path / "cache", tmp_path / "log", limit, pause]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SLOW, *map(str, arguments)],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_processes_of_a_node_download_each_file_once(start, order, dataset, tmp_path):
    for process in [start(), start()]:
        assert process.communicate(timeout=300)[0] == "ready\ndone\n"

    opened = Counter((tmp_path / "log").read_text().split())
    assert opened == {name: 1 for s in order for name in (s.name, s.index_name)}
    for path in (tmp_path / "cache").glob("*.tar"):
        assert path.read_bytes() == (dataset / path.name.split("-", 1)[1]).read_bytes()


def test_two_processes_share_a_small_limit(start, order, tmp_path):
    limit = 6 * largest(order)  # two times one in use and two ahead
    first, second = start(limit), start(limit)
    while first.poll() is None or second.poll() is None:
        sizes = []
        for path in (tmp_path / "cache").glob("*.tar*"):
            if path.suffix != ".lock":
                sizes.append(size_of(path))
        assert sum(sizes) <= limit
        time.sleep(0.002)
    assert [first.returncode, second.returncode] == [0, 0]


def test_a_killed_download_is_done_again(start, order, dataset, tmp_path):
    process = start(pause=0.05)
    cache = tmp_path / "cache"
    wait_until(lambda: list(cache.glob("*.tar.part")))
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {path.name.removesuffix(".part") for path in cache.glob("*.tar.part")}
    assert left, "nothing was killed in the middle"

    assert start().communicate(timeout=300)[0] == "ready\ndone\n"
    assert not list(cache.glob("*.part"))
    for name in left:
        assert (cache / name).read_bytes() == (dataset / name.split("-", 1)[1]).read_bytes()


def test_what_a_killed_download_left_takes_no_room(order, make, tmp_path):
    cache = make(limit=largest(order))
    part = tmp_path / "cache" / f"{order[5].sha256[:16]}-{order[5].name}.part"
    part.write_bytes(bytes(order[5].bytes))
    cache.prepare(order[:1])

    assert cache.fetch(order[0]).exists()
    assert not part.exists()


# A remote dataset.


@pytest.fixture
def memory(dataset):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(dataset), "/bucket/set", recursive=True)
    yield "memory://bucket/set"
    filesystem.rm("/", recursive=True)


def open_remote(url, tmp_path, gigabytes=1.0, ahead=2):
    return ShardDataset(url, "train", StagingOptions(str(tmp_path / "cache"), gigabytes, ahead))


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_remote_dataset_is_the_local_one(dataset, memory, tmp_path, scheme):
    remote = open_remote(memory if scheme == "memory" else dataset.as_uri(), tmp_path)
    local = ShardDataset(dataset, "train")

    assert (len(remote), remote.pairs, remote.splits) == (len(local), local.pairs, local.splits)
    assert remote.fingerprint == local.fingerprint
    np.testing.assert_array_equal(remote.source_order(), local.source_order())
    for image in (*range(SHARDS), 3, 0, 5):
        np.testing.assert_array_equal(remote.image_bytes(image), local.image_bytes(image))
        assert remote.record(image) == local.record(image)
        assert remote.name(image) == local.name(image).replace(str(local.folder), remote.folder)


def test_opening_a_remote_dataset_fetches_no_shard(dataset, tmp_path, downloads):
    open_remote(dataset.as_uri(), tmp_path)

    assert len(downloads) == SHARDS
    assert not [name for name in downloads if name.endswith(".tar")]


def test_reading_in_order_fetches_ahead_and_lets_go(dataset, order, tmp_path, downloads):
    gigabytes = 3 * largest(order) / 10**9
    remote = open_remote(dataset.as_uri(), tmp_path, gigabytes)
    for image in range(SHARDS):
        remote.image_bytes(image)
        following = {shard.name for shard in order[image : image + 3]}
        wait_until(lambda names=following: names <= kept(tmp_path))
    tars = {name: count for name, count in downloads.items() if name.endswith(".tar")}
    assert tars == {shard.name: 1 for shard in order}
    assert len(kept(tmp_path)) == 3


def test_a_view_outlives_its_shard(dataset, order, tmp_path):
    remote = open_remote(dataset.as_uri(), tmp_path, largest(order) / 10**9, ahead=0)
    first = remote.image_bytes(0)
    for image in range(1, SHARDS):
        remote.image_bytes(image)
    assert kept(tmp_path) == {order[-1].name}

    np.testing.assert_array_equal(first, ShardDataset(dataset, "train").image_bytes(0))


def test_a_limit_that_is_too_small_says_so(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"3 shards .* take .* may hold 1,000; raise Staging"):
        open_remote(dataset.as_uri(), tmp_path, 1e-6)


def test_a_source_that_is_not_there_says_so(tmp_path):
    for url in ("memory://none", "nosuch://bucket/set", (tmp_path / "none").as_uri()):
        with pytest.raises(DatasetError, match=rf"{url}/manifest\.json: cannot be read"):
            open_remote(url, tmp_path)


def test_a_cache_folder_that_cannot_be_made_says_so(dataset):
    options = StagingOptions("/proc/nowhere")
    with pytest.raises(
        DatasetError, match=r"/proc/nowhere: cannot hold .* set TMPDIR or StagingOptions\.folder"
    ):
        ShardDataset(dataset.as_uri(), "train", options)


def test_the_default_folder_is_in_the_temporary_one(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert staging.default_folder() == Path(tmp_path) / f"vse_scale-shards-{os.getuid()}"


@pytest.mark.parametrize(("asked", "read"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (9, range(6))])
def test_a_vocabulary_of_some_shards_fetches_no_others(dataset, tmp_path, downloads, asked, read):
    """After mosaicml/streaming#792: a start that reads all of a remote dataset."""
    opened = ShardDataset(dataset.as_uri(), "train", StagingOptions(str(tmp_path / "cache")))
    local = ShardDataset(dataset, "train")
    texts = [c.text for row in read for c in local.record(row).captions]  # one image a shard
    assert list(caption_texts(opened, asked)) == texts
    assert {name for name in downloads if name.endswith(".tar")} == {
        f"train-{number:06d}.tar" for number in read
    }
