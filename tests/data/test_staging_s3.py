"""A dataset on a real S3 that fails at each request in turn.

After mosaicml/streaming#759 (a shard that came damaged ends the run), tensorflow/tensorflow#24357
(a training from S3 crashes) and workforce-data-initiative/skills-ml#82 (a connection that is reset
ends a job of hours).
"""

from __future__ import annotations

import time

import fsspec
import pytest
from s3_server import failing_s3, fresh_bucket

from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingOptions
from vse_shards import remote
from vse_shards.errors import DatasetError, StorageError


@pytest.fixture(scope="module")
def server():
    with failing_s3() as proxy:
        yield proxy


@pytest.fixture
def url(server, scenes, monkeypatch, request):
    """The drawn scenes in a new bucket."""
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 3.0)
    with fresh_bucket(server, request.node, monkeypatch) as bucket:
        found = f"{bucket}/scenes"
        fsspec.filesystem("s3", skip_instance_cache=True).put(f"{scenes}/", found, recursive=True)
        yield found


def everything(place, cache):
    opened = ShardDataset(str(place), "val", StagingOptions(str(cache)))
    return [
        (opened.image_bytes(image).tobytes(), opened.record(image)) for image in range(len(opened))
    ]


LONG = [pytest.param(fault, marks=pytest.mark.slow) for fault in ("403", "500", "hang", "wrong")]


@pytest.mark.parametrize("fault", ["404", "503", "short", *LONG])
def test_each_request_may_fail_once(fault, url, scenes, server, tmp_path):
    """It is waited out, but for a file that is said not to be there: that is one line, and no more.

    Bytes that are not those of the object are seen by S3's own checksum, and by the manifest's.
    """
    local = everything(scenes, tmp_path)
    server.heal()
    before = len(server.log)
    assert everything(url, tmp_path / "well") == local
    requests = len(server.log) - before
    assert requests >= 3  # manifest, index, shard
    refused = []
    for number in range(requests):
        cache = tmp_path / f"{fault}-{number}"
        server.fail_once(fault, number)
        try:
            assert everything(url, cache) == local, (fault, number)
        except DatasetError as error:
            refused.append(str(error))
            assert everything(url, cache) == local, (fault, number)
        assert not list(cache.glob("*.part"))
    assert bool(refused) == (fault == "404"), refused
    assert not any("\n" in line for line in refused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code"), [("403", 2), ("404", 2), ("500", 75), ("hang", 75), ("wrong", 75)]
)
@pytest.mark.parametrize("part", ["manifest.json", ".idx", ".tar"])
def test_what_lasts_ends_in_time_with_the_documented_code(
    part, fault, code, url, scenes, server, tmp_path, monkeypatch
):
    """Denied access and a file that is not there are the user's to mend; the rest may pass."""
    local = everything(scenes, tmp_path)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 2.0)
    server.fail(fault, part=part)
    started = time.monotonic()
    with pytest.raises((StorageError, DatasetError)) as ended:
        everything(url, tmp_path / "cache")

    assert time.monotonic() - started < 120
    assert ended.value.exit_code == code, str(ended.value)
    assert "\n" not in str(ended.value)
    assert part in str(ended.value)
    server.heal()
    monkeypatch.setattr(remote, "RETRY_SECONDS", 60.0)
    assert everything(url, tmp_path / "cache") == local
    assert not list((tmp_path / "cache").glob("*.part"))
