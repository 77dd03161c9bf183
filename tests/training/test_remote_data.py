"""Runs on a dataset behind a URL: what the node's staging cache changes, and what it must not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from warm import vse_scale

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.run.journal import read_journal
from vse_scale.training import setup
from vse_scale.training.setup import open_data

# Imported by every rank at its start: notes what is opened at the source.
WITNESS = """
import atexit, os
from vse_scale.data import staging
real = staging.open_stream

def noted(path):
    with open(os.environ["VSE_TEST_LOG"], "a") as file:
        file.write(path.rsplit("/", 1)[1] + "\\n")
    return real(path)

staging.open_stream = noted
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of what any process from here on fetches from the source."""
    folder = tmp_path / "witness"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITNESS)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.setenv("VSE_TEST_LOG", str(tmp_path / "opened.log"))
    return tmp_path / "opened.log"


@pytest.mark.slow
def test_two_ranks_train_on_a_url_as_on_the_folder_and_fetch_each_shard_once(
    small_run: Path,
    scenes: Path,
    tmp_path: Path,
    opened: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = ("data.shuffle_window=1", "data.cache_ahead=1", "train.epochs=1")
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    places = {"local": scenes, "remote": scenes.as_uri()}
    for name, place in places.items():
        result = vse_scale(
            "train", "--ranks", "2", "--config", small_run, f"run.dir={tmp_path / name}",
            f"data.path={place}", *window, cache,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-4000:]
    losses = [[r["loss"] for r in read_journal(tmp_path / n / "metrics.jsonl")] for n in places]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10
    results = [json.loads((tmp_path / n / "results.json").read_text())["rsum"] for n in places]
    assert results[0] == results[1]
    shards = [path.name for kind in ("tar", "idx") for path in scenes.glob(f"*.{kind}")]
    assert Counter(opened.read_text().split()) == dict.fromkeys(shards, 1)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tables = []
    for place in places.values():
        run = ("--model", tmp_path / "remote", "--data", str(place), "--split", "val")
        result = vse_scale("eval", *run)
        assert result.returncode == 0, result.stderr[-4000:]
        tables.append(result.stdout)
    assert tables[0] == tables[1]
    assert list(tmp_path.glob("vse_scale-shards-*/*-val-000000.tar"))
    result = vse_scale("embed", *run, "--out", tmp_path / "embedded")
    assert result.returncode == 0, result.stderr[-4000:]
    index = json.loads((tmp_path / "embedded" / "index.json").read_text())
    assert index["source"] == {"data": scenes.as_uri(), "split": "val"}


def test_each_rank_fetches_ahead_in_the_streams_of_its_part(
    scenes: Path,
) -> None:
    """A cache with room for one of them ended in the midst of a run, with all shards in use."""
    plan: Any = SimpleNamespace(streams=2, shards_within=lambda _: 4)
    dataset: Any = SimpleNamespace(room=lambda shards: shards * 10**9)

    def check(ranks: int, gigabytes: float) -> None:
        data = {"path": scenes.as_uri(), "cache_ahead": 3, "cache_gb": gigabytes}
        config = Config.parse({"data": data, "run": {"dir": "r"}})
        setup._check_cache(config, plan, dataset, None, ranks)

    for ranks, fits in ((1, 7), (2, 10), (3, 10)):
        check(ranks, fits)
        with pytest.raises(ConfigError, match=f"take up to {fits}.0 of it|takes up to {fits}.0"):
            check(ranks, fits - 0.5)


def test_a_cache_that_cannot_hold_a_window_is_refused_at_once(
    small_run: Path, scenes: Path, tmp_path: Path
) -> None:
    said = []
    for window in (0, 1):
        config = Config.load(
            small_run,
            [
                f"data.path={scenes.as_uri()}", f"data.cache_dir={tmp_path / 'cache'}",
                "data.cache_ahead=0", "data.cache_gb=4e-4", f"data.shuffle_window={window}",
            ],
        )  # fmt: skip
        with pytest.raises(ConfigError) as refusal:
            open_data(config, ranks=1)
        said.append(str(refusal.value))
    assert "data.cache_gb is 0.0004, and a shuffle of all shards takes up to 0." in said[0]
    assert said[0].endswith("raise it, or set data.shuffle_window")
    assert "windows of 1 shards take up to 0." in said[1]
    assert not list((tmp_path / "cache").glob("*.tar"))
