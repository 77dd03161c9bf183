"""A run, its evaluation and its embeddings from a dataset on S3, which fails now and then."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from launching import assert_same_bits
from s3_server import FailingS3, credentials, failing_s3, new_bucket
from safetensors.torch import load_file
from warm import training, vse_scale

from vse_scale.run.journal import read_journal

# Imported by every process at its start: a storage that stays away is given up after seconds.
HASTE = """
import os
from vse_shards import remote
remote.RETRY_SECONDS = float(os.environ.get("VSE_TEST_RETRY", remote.RETRY_SECONDS))
"""
CYCLE = ("503", "short", "500")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FailingS3]:
    """S3 in the standard variables; each test may shorten the processes' patience."""
    (tmp_path / "haste").mkdir()
    (tmp_path / "haste" / "sitecustomize.py").write_text(HASTE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "haste"), prepend=":")
    with failing_s3() as proxy:
        for name, value in credentials(proxy).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eight processes; a shared machine takes ten times as long for each
def test_what_comes_from_a_failing_s3_is_what_comes_from_the_folder(
    small_run: Path,
    scenes: Path,
    tmp_path: Path,
    server: FailingS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"{new_bucket(server, 'data')}/scenes"
    fsspec.filesystem("s3", skip_instance_cache=True).put(f"{scenes}/", url, recursive=True)
    folders = {name: tmp_path / name for name in ("local", "s3")}
    ended = vse_scale("train", "--config", small_run, f"run.dir={folders['local']}")
    assert ended.returncode == 0, ended.stderr[-4000:]

    # Every third request fails; then the run is stopped, and S3 stays away while it would go on.
    server.choose = lambda number, method, path: CYCLE[number // 3 % 3] if number % 3 == 0 else None
    command = (
        *("--config", small_run, f"run.dir={folders['s3']}", f"data.path={url}"),
        *(f"data.cache_dir={tmp_path / 'cache'}", "run.checkpoint_steps=2"),
    )
    with training(1, tmp_path / "log", *command) as run:
        assert run.wait_for_words("checkpoint "), run.said()[-4000:]
        run.send(signal.SIGTERM)
        assert run.wait(600) == 75, run.said()[-4000:]
    assert "stopped after step" in run.said()
    monkeypatch.setenv("VSE_TEST_RETRY", "2")
    server.fail("503")
    ended = vse_scale("train", "--max-restarts", "0", *command)
    assert ended.returncode == 75, ended.stderr[-4000:]
    assert "this may pass: run the same command again" in ended.stderr
    assert "Traceback" not in ended.stderr
    monkeypatch.setenv("VSE_TEST_RETRY", "60")
    server.choose = lambda number, method, path: CYCLE[number // 3 % 3] if number % 3 == 0 else None
    ended = vse_scale("train", *command)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "resumed from" in ended.stderr
    journals = [read_journal(folder / "metrics.jsonl") for folder in folders.values()]
    assert [r["loss"] for r in journals[0]] == [r["loss"] for r in journals[1]]
    assert_same_bits(*(load_file(f / "model" / "model.safetensors") for f in folders.values()))
    assert not list((tmp_path / "cache").glob("*.part"))

    cache = ("--split", "val", "--cache-dir", tmp_path / "other")
    model = ("--model", folders["s3"])
    ended = vse_scale("eval", *model, "--data", url, *cache, "--json", tmp_path / "figures.json")
    assert ended.returncode == 0, ended.stderr[-4000:]
    best = json.loads((folders["s3"] / "results.json").read_text())
    assert json.dumps(best["rsum"]) in (tmp_path / "figures.json").read_text()
    for place, out in ((str(scenes), "folder"), (url, "remote")):
        ended = vse_scale("embed", *model, "--data", place, *cache, "--out", tmp_path / out)
        assert ended.returncode == 0, ended.stderr[-4000:]
    arrays = sorted(path.name for path in (tmp_path / "folder").glob("*.npy"))
    assert arrays
    for name in arrays:
        one, other = (np.load(tmp_path / out / name) for out in ("folder", "remote"))
        np.testing.assert_array_equal(one, other)
    server.fail("503")
    monkeypatch.setenv("VSE_TEST_RETRY", "2")
    ended = vse_scale("eval", *model, "--data", url, "--split", "val")
    assert (ended.returncode, ended.stdout) == (75, ""), ended.stderr[-4000:]
    assert ended.stderr.count("this may pass: run the same command again") == 1
