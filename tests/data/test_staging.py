from __future__ import annotations

import io
import json
import os
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vse_scale.data import staging
from vse_scale.data.staging import StagingCache
from vse_scale.errors import DatasetError
from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six shards of one image."""
    folder = tmp_path_factory.mktemp("staging")
    draws = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(6):
            file = io.BytesIO()
            pixels = draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            (folder / f"{number}.jpg").write_bytes(file.getvalue())
            rows.write(json.dumps({"image": f"{number}.jpg", "captions": ["words"]}) + "\n")
    source = JsonlSource(str(folder / "rows.jsonl"))
    build(source, str(folder / "out"), BuildOptions(shard_samples=1))
    return folder / "out"


@pytest.fixture
def downloads(monkeypatch):
    """How often each file was opened at the source."""
    counts: Counter[str] = Counter()
    guard = threading.Lock()
    real = staging.open_binary

    def counted(path):
        with guard:
            counts[path.rsplit("/", 1)[1]] += 1
        return real(path)

    monkeypatch.setattr(staging, "open_binary", counted)
    return counts


def shards_of(cache):
    return cache.manifest.splits["train"].shards


def size_of(dataset):
    return max(path.stat().st_size for path in dataset.glob("*.tar"))


def test_staged_shards_are_those_of_the_source(dataset, tmp_path, downloads):
    with StagingCache(str(dataset), tmp_path / "c", limit_bytes=10**9, ahead=1) as cache:
        for position, shard in enumerate(shards_of(cache)):
            path = cache.fetch(shards_of(cache), position)
            assert path.read_bytes() == (dataset / shard.name).read_bytes()
            index = path.with_suffix(".idx")
            assert index.read_bytes() == (dataset / shard.index_name).read_bytes()
            cache.release(shard)

    assert set(downloads.values()) == {1}
    assert len(downloads) == 13


def test_the_next_shards_are_fetched_ahead(dataset, tmp_path, downloads):
    cache = StagingCache(str(dataset), tmp_path / "c", limit_bytes=10**9, ahead=2)
    cache.fetch(shards_of(cache), 1)
    cache.close()

    assert {name for name in downloads if name.endswith(".tar")} <= {
        shard.name for shard in shards_of(cache)[1:4]
    }
    assert downloads[shards_of(cache)[1].name] == 1


def test_processes_of_a_node_download_once(dataset, tmp_path, downloads):
    caches = [
        StagingCache(str(dataset), tmp_path / "c", limit_bytes=10**9, ahead=3) for _ in range(4)
    ]
    threads = [threading.Thread(target=cache.fetch, args=(shards_of(cache), 0)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cache in caches:
        cache.close()

    tars = {name: count for name, count in downloads.items() if name.endswith(".tar")}
    assert set(tars.values()) == {1}


def test_the_limit_holds_and_the_least_recently_used_goes_first(dataset, tmp_path):
    limit = 3 * size_of(dataset)
    folder = tmp_path / "c"
    with StagingCache(str(dataset), folder, limit_bytes=limit, ahead=0) as cache:
        order = shards_of(cache)

        def use(number):
            path = cache.fetch(order, number)
            os.utime(path, ns=(use.clock, use.clock))
            use.clock += 10**9
            cache.release(order[number])
            assert sum(p.stat().st_size for p in folder.glob("*.tar")) <= limit

        use.clock = 10**9
        for number in (0, 1, 2, 0, 3, 4):
            use(number)
        left = {path.name.split("-", 1)[1] for path in folder.glob("*.tar")}

    assert left == {order[number].name for number in (0, 3, 4)}
    assert {p.stem for p in folder.glob("*.idx")} == {p.stem for p in folder.glob("*.tar")}


def test_a_shard_in_use_is_not_thrown_out(dataset, tmp_path):
    limit = 2 * size_of(dataset)
    with StagingCache(str(dataset), tmp_path / "c", limit_bytes=limit, ahead=0) as cache:
        order = shards_of(cache)
        held = cache.fetch(order, 0)
        cache.fetch(order, 1)
        with pytest.raises(DatasetError, match="all of its shards are in use; raise the limit"):
            cache.fetch(order, 2)
        assert held.exists()
        cache.release(order[1])
        cache.release(order[2])
        assert cache.fetch(order, 2).exists()


def test_a_shard_that_is_not_what_the_manifest_says_is_refused(dataset, tmp_path):
    import shutil

    shutil.copytree(dataset, tmp_path / "bad")
    name = "train-000002.tar"
    data = bytearray((tmp_path / "bad" / name).read_bytes())
    data[700] ^= 1
    (tmp_path / "bad" / name).write_bytes(data)
    with (
        StagingCache(str(tmp_path / "bad"), tmp_path / "c", limit_bytes=10**9, ahead=0) as cache,
        pytest.raises(DatasetError, match=r"train-000002\.tar: has sha256 .* the manifest"),
    ):
        cache.fetch(shards_of(cache), 2)
    assert not [p for p in (tmp_path / "c").iterdir() if p.suffix in (".tar", ".part")]


def test_what_a_killed_download_left_is_replaced(dataset, tmp_path):
    with StagingCache(str(dataset), tmp_path / "c", limit_bytes=10**9, ahead=0) as cache:
        (shard, *_) = shards_of(cache)
        part = tmp_path / "c" / f"{shard.sha256[:16]}-{shard.name}.part"
        part.write_bytes(b"half of it")
        path = cache.fetch(shards_of(cache), 0)

    assert path.read_bytes() == (dataset / shard.name).read_bytes()
    assert not part.exists()


def test_a_limit_that_is_too_small_says_so(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"3 shards of .* do not fit in the limit of 1,000"):
        StagingCache(str(dataset), tmp_path / "c", limit_bytes=1000, ahead=2)


def test_a_source_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"manifest\.json: cannot be read"):
        StagingCache(str(tmp_path / "none"), tmp_path / "c", limit_bytes=10**9)
