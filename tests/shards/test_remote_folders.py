from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from vse_shards.build import BuildOptions, build
from vse_shards.errors import OutputError, SourceError
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
