"""Manifests that no build wrote: one line each, at once, whatever they hold."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import time

import pytest

from vse_shards.append import append
from vse_shards.build import BuildOptions, build
from vse_shards.errors import DatasetError, OutputError
from vse_shards.info import describe
from vse_shards.manifest import Manifest
from vse_shards.merge import merge
from vse_shards.preview import write_preview
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.verify import verify


def _shard(content):
    return content["splits"]["train"]["shards"][0]


CHANGES = {
    "NUL in a name": lambda c: _shard(c).update(name="a\0.tar"),
    "endless name": lambda c: _shard(c).update(name="a" * 10**6 + ".tar"),
    "negative size": lambda c: _shard(c).update(bytes=-1),
    "huge size": lambda c: _shard(c).update(bytes=10**400),
    "infinite count": lambda c: _shard(c).update(captions=[[float("inf"), 1]]),
    "not a number": lambda c: _shard(c).update(captions=[[float("nan"), 1]]),
    "huge count": lambda c: _shard(c).update(samples=10**15, pairs=0, captions=[[0, 10**15]]),
    "negative run": lambda c: _shard(c).update(captions=[[1, 5], [1, -1]], samples=4, pairs=4),
    "negative captions": lambda c: _shard(c).update(captions=[[-1, 4]], samples=4, pairs=-4),
    "captions as text": lambda c: _shard(c).update(captions="[[1, 4]]"),
    "splits as a list": lambda c: c.update(splits=[]),
    "build as a number": lambda c: c.update(build=3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tools):
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(tools.encoded(tools.picture(number)))
        rows.append(json.dumps({"image": f"{number}.jpg", "captions": ["w"]}))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    source = open_source("jsonl", SourceRequest(str(folder / "rows.jsonl")))
    build(source, str(folder / "out"), BuildOptions())
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "out/manifest.json").read_text())


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_manifest_is_one_line(name, content):
    changed = copy.deepcopy(content)
    CHANGES[name](changed)
    start = time.process_time()
    with pytest.raises(DatasetError) as refused:
        Manifest.loads(json.dumps(changed), "m.json")

    assert time.process_time() - start < 5
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("text", ["[" * 10**5, "{" * 10**5, '{"a":' * 10**5, "", "[]", "1"])
def test_deep_and_empty_json_is_one_line(text):
    with pytest.raises(DatasetError, match=r"m\.json: not"):
        Manifest.loads(text, "m.json")


def test_an_annotation_file_that_is_nested_for_ever_is_one_line(tmp_path, command):
    (tmp_path / "x.json").write_text("[" * 10**5)
    (tmp_path / "images").mkdir()
    done = command(
        "build", "--source", "karpathy", "--input", tmp_path / "x.json", "--out", tmp_path / "out"
    )

    assert done.returncode == 2
    assert "nested too deeply" in done.stderr.splitlines()[-1]


READ_BY = {
    "verify": verify,
    "info": lambda folder: describe(folder) and None,
    "preview": lambda folder: write_preview(folder, folder.parent / "page.html") and None,
    "merge": lambda folder: (
        merge(
            [folder, folder.parent / "other"],
            folder.parent / "both",
            prefix_ids=True,
            allow_leaks=True,
        )
        and None
    ),
    "append": lambda folder: (
        append(
            open_source("jsonl", SourceRequest(str(folder.parent / "rows.jsonl"))),
            str(folder),
            BuildOptions(),
        )
        and None
    ),
}
NEVER_READ = {
    *((name, "train-000000.json") for name in ("verify", "info", "preview")),
    ("preview", "rejects.jsonl"),
}


@pytest.mark.parametrize(
    "name", ["manifest.json", "rejects.jsonl", "train-000000.idx", "train-000000.tar",
             "train-000000.json"]
)  # fmt: skip
@pytest.mark.parametrize("reader", READ_BY)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_never_waited_for(
    name, reader, folder, tmp_path
):
    """Its reader would wait until somebody writes to it; a link to a device never ends."""
    shutil.copytree(folder, place := tmp_path / "place")
    shutil.copytree(place / "out", place / "other")
    (damaged := place / "out" / name).unlink()
    os.mkfifo(damaged)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited for the pipe"))
    signal.alarm(20)
    try:
        said = "\n".join(READ_BY[reader](place / "out") or [])
    except (DatasetError, OutputError) as error:
        said = str(error)
    finally:
        signal.alarm(0)

    assert name in said or (reader, name) in NEVER_READ
    assert "make room" not in said
