from __future__ import annotations

import errno
import json
import sys
import tarfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vse_shards import storage
from vse_shards.build import BuildOptions, build
from vse_shards.cli import main
from vse_shards.errors import AccessError, OutputError, SourceError, StorageError
from vse_shards.sources.registry import SourceRequest, open_source


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


def test_a_remote_source_and_a_remote_output_give_the_files_of_local_ones(
    small_source, tmp_path, memory, tools
):
    path = small_source(20)
    options = BuildOptions(shard_samples=7)
    build(open_source("jsonl", SourceRequest(str(path))), str(tmp_path / "out"), options)
    memory.put(str(path.parent), "/source", recursive=True)
    remote = open_source("jsonl", SourceRequest("memory://source/captions.jsonl"))
    build(remote, "memory://out", options)
    memory.get("/out", str(tmp_path / "copy"), recursive=True)

    assert tools.digests(tmp_path / "copy") == tools.digests(tmp_path / "out")


@pytest.mark.parametrize("kind", ["folder", "webdataset", "csv"])
def test_other_sources_are_read_remotely_too(kind, tmp_path, memory, tools):
    good = tools.encoded(tools.picture(1))
    memory.pipe("/in/folder/a.jpg", good)
    memory.pipe("/in/folder/a.txt", b"words")
    memory.pipe("/in/csv/t.csv", b"image,caption\n../folder/a.jpg,words\n")
    memory.pipe("/in/csv/a.jpg", good)
    if kind == "csv":
        memory.pipe("/in/csv/t.csv", b"image,caption\na.jpg,words\n")
    if kind == "webdataset":
        build(
            open_source("folder", SourceRequest("memory://in/folder")),
            "memory://in/webdataset",
            BuildOptions(),
        )
    place = {"csv": "memory://in/csv/t.csv"}.get(kind, f"memory://in/{kind}")
    summary = build(open_source(kind, SourceRequest(place)), str(tmp_path / "out"), BuildOptions())

    assert (summary.images, summary.untouched) == (1, 1)
    assert good in (tmp_path / "out/train-000000.tar").read_bytes()


COCO = {"images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"id": 5, "image_id": 1, "caption": "one"}]}  # fmt: skip
KARPATHY = {"dataset": "flickr8k", "images": [
    {"imgid": 1, "filename": "1.jpg", "split": "train", "sentids": [5],
     "sentences": [{"raw": "one", "sentid": 5, "imgid": 1, "tokens": ["one"]}]}]}  # fmt: skip
ANNOTATIONS = {
    "coco": ("captions_train2017.json", {"captions_train2017.json": json.dumps(COCO)}),
    "karpathy": ("dataset_flickr8k.json", {"dataset_flickr8k.json": json.dumps(KARPATHY)}),
    "precomp": ("", {"id_mapping.json": '{"1": "1.jpg"}', "precomp/train_ids.txt": "1\n" * 5,
                     "precomp/train_caps.txt": "one\n" * 5}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations_in_a_storage_are_read(kind, tmp_path, memory, tools):
    """They were asked for as a range up to the limit, of which a storage sends what there is."""
    name, files = ANNOTATIONS[kind]
    for file, text in files.items():
        memory.pipe(f"/in/{file}", text.encode())
    memory.pipe("/in/images/1.jpg", tools.encoded(tools.picture(1)))
    images = "memory://in/images"
    source = open_source(kind, SourceRequest(f"memory://in/{name}".rstrip("/"), images))
    build(source, str(tmp_path / "out"), BuildOptions())
    assert b'"text": "one"' in (tmp_path / "out/train-000000.tar").read_bytes()


def test_little_of_a_remote_tar_is_fetched_twice_to_list_it(tmp_path, memory, monkeypatch):
    """The first 8 MB of each were, to find that it is not compressed."""
    (tmp_path / "a.jpg").write_bytes(bytes(1 << 20))
    (tmp_path / "a.txt").write_bytes(b"words")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.jpg", "a.txt"):
            tar.add(tmp_path / name, name)
    memory.put(str(tmp_path / "t.tar"), "/in/t.tar")
    fetched, read_bytes = [], storage.read_bytes

    def counted(path, offset=0, size=None):
        fetched.append(size)
        return read_bytes(path, offset, size)

    monkeypatch.setattr(storage, "read_bytes", counted)
    source = open_source("webdataset", SourceRequest("memory://in/t.tar"))
    whole = (tmp_path / "t.tar").stat().st_size
    for number in (1, 2):  # readings of the source
        assert [row.image_id for row in source.rows()] == ["t/a"]
        assert fetched == [1 << 16, *[whole] * number]


def test_a_remote_build_that_was_stopped_is_resumed(small_source, tmp_path, memory):
    source = open_source("jsonl", SourceRequest(str(small_source(20))))
    build(source, "memory://out", BuildOptions(shard_samples=7))
    kept = memory.modified("/out/train-000000.tar")
    memory.rm("/out/manifest.json")
    memory.rm("/out/train-000001.json")
    whole = memory.cat("/out/train-000001.tar")
    memory.pipe("/out/train-000001.tar", whole[:1000])
    build(source, "memory://out", BuildOptions(shard_samples=7))

    assert memory.modified("/out/train-000000.tar") == kept
    assert memory.cat("/out/train-000001.tar") == whole
    assert memory.exists("/out/manifest.json")


def test_missing_remote_images_and_inputs_are_named(small_source, memory):
    path = small_source(5)
    memory.put(str(path.parent), "/source", recursive=True)
    memory.rm("/source/images/0003.jpg")
    with pytest.raises(SourceError, match=r"1 of 5 images are missing: 0003\.jpg;"):
        build(
            open_source("jsonl", SourceRequest("memory://source/captions.jsonl")),
            "memory://out",
            BuildOptions(),
        )
    with pytest.raises(SourceError, match=r"memory://source/none\.jsonl: no such file"):
        open_source("jsonl", SourceRequest("memory://source/none.jsonl"))


def test_a_protocol_that_is_unknown_or_not_installed_is_one_line(small_source, tmp_path: Path):
    source = open_source("jsonl", SourceRequest(str(small_source(5))))
    with pytest.raises(OutputError, match="nosuch"):
        build(source, "nosuch://bucket/out", BuildOptions())
    with pytest.raises(SourceError, match="nosuch"):
        open_source("jsonl", SourceRequest("nosuch://bucket/in.jsonl"))


class NoCredentialsError(Exception):
    """Like botocore's: no OSError."""


class Guarded(MemoryFileSystem):
    """Refuses everything below ``secret``, and everything called ``late``."""

    protocol = "guarded"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("guarded://", "memory://"))

    def _refuse(self, path: str) -> None:
        if "secret" in path or "late" in path:
            raise NoCredentialsError("Unable to\nlocate credentials")

    def info(self, path, **options):
        if "late" not in path:
            self._refuse(path)
        return super().info(path, **options)

    def makedirs(self, path, exist_ok=False):
        self._refuse(path.replace("late", ""))
        super().makedirs(path, exist_ok)

    def cat_file(self, path, **options):
        self._refuse(path)
        return super().cat_file(path, **options)

    def put_file(self, source, target, **options):
        self._refuse(target)
        super().put_file(source, target, **options)


@pytest.fixture
def guarded(memory):
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    return memory


def test_whatever_a_storage_raises_is_one_line(
    small_source, tmp_path, guarded, capsys, monkeypatch
):
    local = str(small_source(5))
    guarded.put(str(Path(local).parent), "/source", recursive=True)
    guarded.pipe("/late.json", b"{}")
    out = str(tmp_path / "out")
    cases = [
        ("jsonl", "guarded://secret/captions.jsonl", out),
        ("folder", "guarded://secret", out),
        ("karpathy", "guarded://late.json", out),
        ("jsonl", local, "guarded://secret/out"),
        ("jsonl", local, "guarded://late/out"),
    ]
    for kind, source, target in cases:
        arguments = ["build", "--source", kind, "--input", source, "--out", target]
        arguments += ["--images", "guarded://source/images"] if kind == "karpathy" else []
        monkeypatch.setattr("sys.argv", ["vse-shards", *arguments, "--workers", "1"])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr().err.splitlines()
        assert left.value.code == 2
        assert "Unable to locate credentials" in said[-1]
        assert "guarded://" in said[-1]
        assert len([line for line in said if "error:" in line]) == 1


def test_a_storage_that_refuses_an_image_stops_the_build(write_rows, tmp_path, guarded, tools):
    """It was a reject, and the dataset was sealed without the image."""
    good = tools.encoded(tools.picture(1))
    guarded.pipe("/images/good.jpg", good)
    guarded.pipe("/images/late.jpg", good)
    rows = [{"image": name, "captions": ["words"]} for name in ("good.jpg", "late.jpg")]
    source = open_source("jsonl", SourceRequest(str(write_rows(rows, {})), "guarded://images"))
    with pytest.raises(AccessError, match=r"guarded://images/late\.jpg: .* locate credentials;"):
        build(source, str(tmp_path / "out"), BuildOptions())
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_disk_that_fails_says_nothing_of_an_image(small_source, tmp_path, monkeypatch):
    """A mount that went away; huggingface/datasets#7440 is of such errors."""
    source = open_source("jsonl", SourceRequest(str(small_source(4))))
    read = storage.read_bytes

    def failing(path, *place):
        if path.endswith("2.jpg"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return read(path, *place)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "read_bytes", failing)
        with pytest.raises(StorageError, match=r"2\.jpg: cannot be read: Stale.*same command"):
            build(source, str(tmp_path / "out"), BuildOptions(workers=1))
    assert not (tmp_path / "out/manifest.json").exists()
    assert build(source, str(tmp_path / "out"), BuildOptions(workers=1)).images == 4


@pytest.fixture
def endless():
    """The address of a web server that says no size; all but /short and /lost goes on for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/lost"):
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(b'{"image": "a.jpg"}\n')
                while not self.path.startswith("/short"):
                    self.wfile.write(bytes(1 << 16))

        def log_message(self, *given):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_file_without_a_size_is_read_to_its_end_or_to_a_limit(
    endless, monkeypatch, capsys, tmp_path
):
    """After aio-libs/aiohttp#2638 and aio-libs/aiohttp#7614 (no Content-Length, and no limit)."""
    monkeypatch.setattr(storage, "MOST_WEB_BYTES", 1 << 20)
    assert storage.read_bytes(f"{endless}/short") == b'{"image": "a.jpg"}\n'
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{endless}/lost")
    with pytest.raises(SourceError, match="more than 1 MB have come, and no end; download"):
        storage.read_bytes(f"{endless}/rows")
    for kind, name in (("jsonl", "rows.jsonl"), ("webdataset", "a.tar")):
        out = tmp_path / kind
        words = ["x", "build", "--source", kind, "--input", f"{endless}/{name}", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "no end; download the file, and give its path" in line
        assert not out.exists()
