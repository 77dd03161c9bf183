"""Local copies of shards where other users, servers and networks do what they should not.

After mosaicml/streaming#759 (a shard that arrived damaged ends the run), webdataset/webdataset#112
and huggingface/datasets#7440 (a connection that breaks ends the run, or the shard), and
huggingface/transformers#41311 (a predictable folder in /tmp).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from vse_scale.data.shards import ShardDataset
from vse_scale.data.staging import StagingCache, StagingOptions, default_folder
from vse_scale.errors import DatasetError
from vse_shards import manifest as manifest_module
from vse_shards import remote
from vse_shards.build import BuildOptions, build
from vse_shards.errors import StorageError
from vse_shards.manifest import Manifest
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.upgrade import upgrade


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(2):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
            rows.write(json.dumps({"image": f"{number}.jpg", "captions": ["words"]}) + "\n")
    build(
        JsonlSource(str(folder / "rows.jsonl")), str(folder / "out"), BuildOptions(shard_samples=1)
    )
    return folder / "out"


@pytest.fixture
def shard(dataset):
    return Manifest.load(dataset).splits["train"].shards[0]


def open_cache(dataset, folder):
    return StagingCache(dataset.as_uri(), folder, 10**9)


def cached(folder, shard):
    return folder / f"{shard.sha256[:16]}-{shard.name}"


# Other users.


def test_the_default_folder_is_for_its_owner_alone(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    default_folder().mkdir(mode=0o777)
    default_folder().chmod(0o777)
    open_cache(dataset, default_folder()).close()

    assert default_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["folder of another user", "link"])
def test_a_default_folder_that_another_user_made_is_refused(
    planted, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    if planted == "link":
        (tmp_path / "home").mkdir()
        monkeypatch.setattr(os, "getuid", lambda: mine)
        default_folder().symlink_to(tmp_path / "home")
    else:
        default_folder().mkdir()
    with pytest.raises(DatasetError, match="other users can write there; set folder to a folder"):
        open_cache(dataset, default_folder())

    monkeypatch.setattr(os, "getuid", lambda: mine)
    open_cache(dataset, tmp_path / "own").close()  # the remedy


def test_a_folder_that_everybody_may_write_is_refused(dataset, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    with pytest.raises(DatasetError, match="other users can write there"):
        open_cache(dataset, tmp_path / "open")


@pytest.mark.parametrize("name", ["{}.part", "{}.lock", "room.lock", "{}"])
def test_no_planted_link_is_followed(name, dataset, shard, tmp_path):
    """The files of the link's owner were emptied and overwritten."""
    victim = tmp_path / "thesis.tex"
    victim.write_text("ten years of work")
    cache = open_cache(dataset, tmp_path / "cache")
    (tmp_path / "cache" / name.format(cached(tmp_path, shard).name)).symlink_to(victim)
    cache.prepare([shard])
    try:
        path = cache.fetch(shard)
    except DatasetError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert path.read_bytes() == (dataset / shard.name).read_bytes()
    cache.close()
    assert victim.read_text() == "ten years of work"


def test_a_poisoned_shard_of_the_right_size_is_fetched_again(dataset, shard, tmp_path, caplog):
    """Its captions were embedded."""
    cache = open_cache(dataset, tmp_path / "cache")
    cached(tmp_path / "cache", shard).write_bytes(b"x" * shard.bytes)
    with caplog.at_level("WARNING", "vse_scale"):
        cache.prepare([shard])
        path = cache.fetch(shard)

    assert path.read_bytes() == (dataset / shard.name).read_bytes()
    cache.close()


def test_whatever_is_changed_in_the_cache_is_fetched_again(dataset, tmp_path):
    """Tars, indices of both kinds and columns: the captions of an index are embedded too."""
    shutil.copytree(dataset, tmp_path / "set")
    upgrade(tmp_path / "set")
    url, local = (tmp_path / "set").as_uri(), ShardDataset(dataset, "train")
    expected = [local.image_bytes(image).tobytes() for image in range(len(local))]

    for source in (url, dataset.as_uri()):
        assert read_all(source, tmp_path) == expected
    kept = {
        path: path.read_bytes() for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"
    }
    names = " ".join(path.name for path in kept)
    assert all(kind in names for kind in (".tar", ".idx ", ".idx.npy", ".captions.", ".digests."))
    for path, data in kept.items():
        changed = bytes(byte ^ 1 for byte in data[-64:])
        path.write_bytes(data[:-64] + changed)
    for source in (url, dataset.as_uri()):
        assert read_all(source, tmp_path) == expected
    assert {path: path.read_bytes() for path in kept} == kept


# Servers and networks.


class Server:
    """Serves a dataset over HTTP; ``fault`` decides how the paths that hold ``part`` are sent."""

    def __init__(self, folder):
        self.fault, self.part, self.until, self.sent = "", "", 0.0, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = folder / self.path.lstrip("/").partition("?")[0]
                hit = server.part in self.path and time.monotonic() < server.until
                fault = server.fault if hit else ""
                if fault == "503" or not path.is_file():
                    self.send_error(503 if fault else 404)
                    return
                if fault == "hang":
                    time.sleep(5)
                    return
                data = path.read_bytes()
                self.send_response(200)
                if fault != "endless":
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "short":
                    data = data[: len(data) // 2]
                elif fault == "wrong":
                    data = bytes(len(data))
                self.wfile.write(data)
                while fault == "endless" and server.sent < 200 << 20:
                    self.wfile.write(bytes(1 << 16))
                    server.sent += 1 << 16

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, fault, part, seconds=1e9):
        self.fault, self.part, self.until = fault, part, time.monotonic() + seconds

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(dataset):
    served = Server(dataset)
    yield served
    served.close()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 2.0)
    monkeypatch.setattr(remote, "QUIET_SECONDS", 0.4)


def read_all(url, tmp_path):
    opened = ShardDataset(url, "train", StagingOptions(str(tmp_path / "cache")))
    return [opened.image_bytes(image).tobytes() for image in range(len(opened))]


@pytest.mark.parametrize("part", ["manifest.json", ".idx", ".tar"])
def test_two_seconds_of_503_end_no_run(part, dataset, server, tmp_path):
    server.fail("503", part, seconds=2.0)
    local = ShardDataset(dataset, "train")

    assert read_all(server.url, tmp_path) == [local.image_bytes(n).tobytes() for n in range(2)]


@pytest.mark.parametrize("part", ["manifest.json", ".idx", ".tar"])
@pytest.mark.parametrize("fault", ["hang", "503", "short"])
def test_what_lasts_ends_with_the_code_that_starts_again(
    part, fault, server, tmp_path, hasty, capsys
):
    server.fail(fault, part)
    start = time.monotonic()
    with pytest.raises((StorageError, DatasetError)) as ended:
        read_all(server.url, tmp_path)

    assert time.monotonic() - start < 30
    assert part in str(ended.value)
    assert ended.value.exit_code == 75
    assert "trying again for up to" in capsys.readouterr().err
    server.fail("", "")
    assert len(read_all(server.url, tmp_path)) == 2
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("part", ["manifest.json", ".idx", ".tar"])
def test_an_endless_answer_is_cut_at_the_size_that_is_expected(
    part, server, tmp_path, monkeypatch, hasty
):
    """600 MB were written for a shard of 190 kB."""
    monkeypatch.setattr(manifest_module, "_MAX_BYTES", 1 << 20)
    server.fail("endless", part)
    with pytest.raises(DatasetError, match="more than"):
        read_all(server.url, tmp_path)

    assert server.sent < 100 << 20
    held = 0
    for path in tmp_path.glob("cache/*"):
        with suppress(FileNotFoundError):  # the fetch ahead removes its part meanwhile
            held += path.stat().st_size
    assert held < 1 << 20


def test_bytes_that_stay_wrong_are_refused(server, tmp_path, hasty):
    server.fail("wrong", ".tar")
    with pytest.raises(DatasetError, match=r"has sha256 .* the manifest says"):
        read_all(server.url, tmp_path)
    assert not list((tmp_path / "cache").glob("*.tar"))
