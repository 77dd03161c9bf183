"""The scripts behind the tables of docs/scaling.md run, at sizes that take no time."""

from __future__ import annotations

from pathlib import Path

import against_checkout
import checkpoint_stall
import numpy as np
import opening
import order_scaling
import pytest

PAIRS = 5_000


def cells(row: str) -> list[float]:
    words = row.replace("|", " ").replace("(", " ").replace(")", " ").replace(",", " ").split()
    return [float(word) for word in words]


@pytest.mark.parametrize("version", [1, 2])
def test_opening_reads_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    from vse_scale.data.shards import ShardDataset

    monkeypatch.setattr(opening, "SHARD", 900)
    assert opening.make(tmp_path, PAIRS, version) == 3  # 2,000 images
    dataset = ShardDataset(tmp_path, "train")
    assert len(dataset) == 2_000
    assert PAIRS - 100 < int(np.asarray(dataset.captions_per_sample).sum()) < PAIRS + 100
    seconds, most, before, each = cells(opening.measured(tmp_path))
    assert 0 <= seconds < 60
    assert most >= before > 10
    assert each > 0


@pytest.mark.parametrize("kind", order_scaling.KINDS)
def test_order_scaling_plans_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(order_scaling, "SHARD", 10)
    monkeypatch.setattr(order_scaling, "BATCH", 1024)
    order_scaling.write_column(tmp_path / "captions.npy", 20_000)
    options = order_scaling.KINDS[kind]
    first, later, most, megabytes, before = cells(
        order_scaling.measured(tmp_path / "captions.npy", options)
    )
    assert 0 <= first < 60
    assert 0 < later <= most
    assert megabytes >= before > 10


@pytest.mark.slow
def test_checkpoint_stall_measures_all_ways(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint_stall.main(["1", "1"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[3:]] == [f"| {w}" for w in checkpoint_stall.WAYS]


def test_each_case_that_two_checkouts_run_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_checkout, "IMAGES", 5)
    monkeypatch.setattr(against_checkout, "ROWS", 64)
    for case in against_checkout.CASES.values():
        assert against_checkout.seconds(case(0)) > 0
