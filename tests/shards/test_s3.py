"""Builds from and to a real S3, well and failing.

After fsspec/s3fs#401 (``makedirs`` makes nothing), fsspec/s3fs#591 (403 for a file that is not
there), awslabs/mountpoint-s3#1422 (503 taken for a missing file) and huggingface/datasets#7440
(FileNotFoundError in place of a retry).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import fsspec
import pytest
from s3_server import FAULTS, failing_s3, fresh_bucket

from vse_shards import remote, seal
from vse_shards.append import append, options_of
from vse_shards.build import BuildOptions, build
from vse_shards.errors import AccessError, OutputError, StorageError, UserError
from vse_shards.manifest import Manifest
from vse_shards.remote import open_filesystem
from vse_shards.sources.registry import SourceRequest, open_source
from vse_shards.verify import verify


@pytest.fixture(scope="module")
def server():
    with failing_s3() as proxy:
        yield proxy


@pytest.fixture
def bucket(server, monkeypatch, request):
    """The URL of a new bucket, through the standard variables."""
    with fresh_bucket(server, request.node, monkeypatch) as url:
        yield url


@pytest.fixture
def hasty(monkeypatch):
    """Short waits, so that what hangs or fails for ever ends soon."""
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 3.0)
    monkeypatch.setattr(remote, "DENIED_SECONDS", 0.5)


def s3():
    return fsspec.filesystem("s3", skip_instance_cache=True)


def kept(url):
    filesystem = s3()
    return {name.rsplit("/", 1)[1]: filesystem.cat_file(name) for name in filesystem.find(url)}


def local(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OPTIONS = BuildOptions(shard_samples=3)


def from_file(path, images=None):
    return open_source("jsonl", SourceRequest(str(path), images))


def test_a_build_to_a_new_prefix_gives_the_bytes_of_a_local_one(small_source, tmp_path, bucket):
    source = from_file(small_source(10))
    build(source, str(tmp_path / "out"), OPTIONS)
    build(source, f"{bucket}/new/prefix", OPTIONS)

    assert kept(f"{bucket}/new/prefix") == local(tmp_path / "out")


def test_a_remote_source_gives_the_bytes_of_a_local_one(small_source, tmp_path, bucket):
    path = small_source(10)
    s3().put(str(path.parent), f"{bucket}/source", recursive=True)
    build(from_file(path), str(tmp_path / "out"), OPTIONS)
    build(from_file(f"{bucket}/source/captions.jsonl"), str(tmp_path / "other"), OPTIONS)

    assert local(tmp_path / "other") == local(tmp_path / "out")


def test_the_same_command_resumes_and_another_is_refused(small_source, tmp_path, bucket):
    path = small_source(10)
    source = from_file(path)
    build(source, f"{bucket}/out", OPTIONS)
    whole = kept(f"{bucket}/out")
    for name in ("manifest.json", "train-000001.json"):
        s3().rm_file(f"{bucket}/out/{name}")
    s3().pipe_file(f"{bucket}/out/train-000001.tar", whole["train-000001.tar"][:1000])
    build(source, f"{bucket}/out", OPTIONS)
    assert kept(f"{bucket}/out") == whole
    with pytest.raises(UserError, match="contains a dataset of another build"):
        build(source, f"{bucket}/out", BuildOptions(shard_samples=4))
    assert kept(f"{bucket}/out") == whole


@pytest.mark.parametrize("fault", ["403", "503"])
def test_a_storage_that_fails_after_some_images_seals_nothing(
    fault, small_source, tmp_path, bucket, server, hasty
):
    """Twenty of a hundred images were sealed, with exit code 0."""
    path = small_source(10)
    s3().put(str(path.parent), f"{bucket}/source", recursive=True)
    build(from_file(path), str(tmp_path / "out"), OPTIONS)
    source = from_file(f"{bucket}/source/captions.jsonl")
    server.fail(fault, part="0007.jpg")
    with pytest.raises(StorageError) as refused:
        build(source, str(tmp_path / "other"), OPTIONS)

    assert "0007.jpg" in str(refused.value)
    assert refused.value.exit_code == (2 if fault == "403" else 75)
    assert "the same command again" in str(refused.value)
    assert not (tmp_path / "other/manifest.json").exists()
    server.heal()
    build(source, str(tmp_path / "other"), OPTIONS)
    assert local(tmp_path / "other") == local(tmp_path / "out")


def test_a_dataset_that_may_not_be_read_is_not_overwritten(small_source, bucket, server, hasty):
    path = small_source(4)
    build(from_file(path), f"{bucket}/out", OPTIONS)
    whole = kept(f"{bucket}/out")
    server.fail("403", part="/manifest.json")
    with pytest.raises(AccessError, match="the storage fails"):
        build(from_file(path), f"{bucket}/out", BuildOptions(shard_samples=2))
    server.heal()
    assert kept(f"{bucket}/out") == whole


def test_two_seconds_of_503_are_waited_out(small_source, tmp_path, bucket, server, capsys):
    path = small_source(10)
    build(from_file(path), str(tmp_path / "out"), OPTIONS)
    server.fail("503", seconds=2.0)
    build(from_file(path), f"{bucket}/out", OPTIONS)

    assert kept(f"{bucket}/out") == local(tmp_path / "out")


def test_a_hang_is_said_after_the_silence(bucket, server, hasty, monkeypatch, capsys):
    monkeypatch.setattr(remote, "QUIET_SECONDS", 0.4)
    s3().pipe_file(f"{bucket}/rows.jsonl", b"")
    server.fail("hang", part="rows.jsonl")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"tried for 3 s; this may pass"):
        from_file(f"{bucket}/rows.jsonl")

    assert time.monotonic() - start < 30
    assert "trying again for up to" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["memory://two-builders/out", "s3"])
@pytest.mark.parametrize("second", ["begun", "finished"])
def test_of_two_builds_in_one_remote_folder_the_later_goes_on(
    place, second, small_source, tmp_path, bucket, monkeypatch
):
    """After apache/iceberg#1564 and delta-io/delta#324: S3 has no lock, and two writers mix."""
    out = f"{bucket}/out" if place == "s3" else f"{place}-{second}"
    source, other = from_file(small_source(10)), BuildOptions(shard_samples=4)
    build(source, str(tmp_path / "out"), other)
    run = seal.run_tasks

    def run_with_another_in_between(tasks, workers, progress):
        run(tasks[:1], workers, progress)
        with monkeypatch.context() as patch:
            patch.setattr(seal, "run_tasks", run if second == "finished" else _die)
            try:
                build(source, out, other)
            except KeyboardInterrupt:
                assert second == "begun"
        return 1 + run(tasks[1:], workers, progress)

    with monkeypatch.context() as patch:
        patch.setattr(seal, "run_tasks", run_with_another_in_between)
        with pytest.raises(OutputError, match="another build has begun in this folder since"):
            build(source, out, OPTIONS)
    if second == "begun":
        build(source, out, other)
    filesystem, inner = open_filesystem(out)
    found = {name.rsplit("/", 1)[1]: filesystem.cat_file(name) for name in filesystem.find(inner)}
    assert found == local(tmp_path / "out")


def _die(*_):
    raise KeyboardInterrupt


def test_the_last_upload_of_another_build_is_not_sealed(small_source, bucket, monkeypatch):
    out, source = "memory://late-upload/out", from_file(small_source(10))
    filesystem, inner = open_filesystem(out)
    check = seal.report_duplicates

    def late(*arguments):
        filesystem.pipe_file(f"{inner}/train-000001.tar", b"of another build")
        return check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(seal, "report_duplicates", late)
        with pytest.raises(OutputError, match=r"train-000001\.tar: has 16 bytes, and [\d,]+ were"):
            build(source, out, OPTIONS)
    assert not filesystem.exists(f"{inner}/manifest.json")
    build(source, out, OPTIONS)
    assert filesystem.exists(f"{inner}/manifest.json")


def test_append_to_a_url_names_a_way(bucket, command):
    result = command("append", f"{bucket}/out", "--source", "jsonl", "--input", "x.jsonl")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "copy the dataset there first" in line


def _said(run, out):
    """The message of a build, "" if it succeeds."""
    try:
        run(out)
    except UserError as error:
        return str(error)
    return ""


def _check_each_request(faults, step, small_source, tmp_path, bucket, server):
    """Fail one request of a build, every ``step``-th in turn; the same command then goes on."""
    path = small_source(4)
    s3().put(str(path.parent), f"{bucket}/source", recursive=True)
    build(from_file(path), str(tmp_path / "out"), OPTIONS)
    want = local(tmp_path / "out")

    def run(out):
        # The rows are local: nothing tells that other rows are not those that were written.
        build(from_file(path, f"{bucket}/source/images"), out, OPTIONS)

    before = len(server.log)
    run(f"{bucket}/first")
    requests = len(server.log) - before
    assert requests > 30
    for start, fault in enumerate(faults):
        for number in range(start % step, requests, step):
            server.fail_once(fault, number)
            out = f"{bucket}/{fault}-{number}"
            said = _said(run, out)
            assert "\n" not in said
            server.heal()
            if said:
                run(out)
            found = kept(out)
            if fault == "404":  # a file that is said not to be there is not removed
                found.pop(".build.json", None)
            assert found == want, (fault, number)


@pytest.mark.slow
def test_each_request_of_a_build_may_fail(small_source, tmp_path, bucket, server, hasty):
    _check_each_request(FAULTS, 30, small_source, tmp_path, bucket, server)


@pytest.mark.soak
def test_every_request_of_a_build_may_fail(small_source, tmp_path, bucket, server, hasty):
    _check_each_request(FAULTS, 1, small_source, tmp_path, bucket, server)


def test_some_requests_of_a_build_may_fail(small_source, tmp_path, bucket, server, hasty):
    _check_each_request(("404", "wrong"), 20, small_source, tmp_path, bucket, server)


@pytest.mark.parametrize(
    ("faults", "step"),
    [
        pytest.param(("404", "503", "short"), 5, id="some"),
        pytest.param(FAULTS, 1, id="every", marks=pytest.mark.soak),
    ],
)
def test_requests_of_an_append_may_fail(
    small_source, tmp_path, bucket, server, hasty, faults, step
):
    """The images that come are in S3, the dataset that grows is here."""
    path = small_source(7)
    s3().put(str(path.parent), f"{bucket}/source", recursive=True)
    few = path.with_name("few.jsonl")
    few.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    build(from_file(few), str(tmp_path / "before"), OPTIONS)

    def run(out):
        append(from_file(path, f"{bucket}/source/images"), str(out), options_of(str(out), OPTIONS))

    def grown(name):
        return shutil.copytree(tmp_path / "before", tmp_path / name)

    before = len(server.log)
    run(grown("whole"))
    want, requests = local(tmp_path / "whole"), len(server.log) - before
    assert sum(name.endswith(".tar") for name in want) == 4
    for start, fault in enumerate(faults):
        for number in range(start % step, requests, step):
            out = grown(f"{fault}-{number}")
            server.fail_once(fault, number)
            said = _said(run, out)
            assert "\n" not in said
            server.heal()
            if said:  # the dataset is the one that it was, and the same command goes on
                assert len(Manifest.load(out).splits["train"].shards) == 1
                assert verify(out) == []
                run(out)
            assert local(out) == want, (fault, number, said)


@pytest.mark.slow
def test_the_command_says_by_its_exit_code_that_it_may_pass(small_source, tmp_path, bucket, server):
    path = small_source(4)
    code = (
        "from vse_shards import remote; remote.RETRY_SECONDS = 2.0\n"
        "from vse_shards.cli import main; main()"
    )
    arguments = ["build", "--source", "jsonl", "--input", str(path), "--out", f"{bucket}/out"]
    server.fail("503")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--workers", "2"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("vse-shards: error: s3://")
    server.heal()
    again = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--workers", "2", "--json"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["images"] == 4
