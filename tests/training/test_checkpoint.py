"""Checkpoints: whole or absent, verified, the one before kept; a foreign one is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch.distributed as dist

from vse_scale.config import Config
from vse_scale.errors import CheckpointError
from vse_scale.training.checkpoint import Checkpoints, RunState

CONFIG = Config.parse({"data": {"path": "shards"}, "run": {"dir": "out"}})
STATE = RunState(step=3, ranks=2, fingerprint="f" * 64, config=CONFIG.model_dump(mode="json"))


class FileEngine:
    """Saves one file, as DeepSpeed saves several."""

    def save(self, folder: str, tag: str) -> None:
        path = Path(folder, tag)
        path.mkdir(parents=True)
        (path / "weights.pt").write_bytes(bytes(range(256)) * 8)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "barrier", lambda: None)


def save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(FileEngine(), dataclasses.replace(STATE, step=step), main=True)


def test_the_newest_comes_back_with_its_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    save(checkpoints, 3)
    path = save(checkpoints, 12)
    assert checkpoints.newest() == (path, dataclasses.replace(STATE, step=12))
    assert (tmp_path / "checkpoints" / "latest").read_text() == path.name


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 30):
        save(checkpoints, step)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000010", "step-00000030"]


@pytest.mark.parametrize("name", ["weights.pt", "state.json", "files.json"])
@pytest.mark.parametrize("kept_bytes", [0, 1, 100])
def test_a_truncated_one_is_passed_over_for_the_one_before(
    tmp_path: Path, name: str, kept_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    before = save(checkpoints, 1)
    damaged = save(checkpoints, 2) / name
    damaged.write_bytes(damaged.read_bytes()[:kept_bytes])
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == before


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = save(checkpoints, 1) / "weights.pt"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pt is not what was written"):
        checkpoints.newest()


def test_a_write_that_was_cut_off_leaves_nothing_that_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    whole = save(checkpoints, 1)

    class DyingEngine(FileEngine):
        def save(self, folder: str, tag: str) -> None:
            super().save(folder, tag)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(DyingEngine(), dataclasses.replace(STATE, step=2), main=True)
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == whole
    assert save(checkpoints, 2).name == "step-00000002"


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="fingerprint ffffffffffff, but shards has 000000"):
        STATE.check(CONFIG, "0" * 64, 2, tmp_path)


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    changed = Config.parse(
        {"data": {"path": "shards", "global_batch": 64}, "run": {"dir": "out", "seed": 1}}
    )
    with pytest.raises(CheckpointError) as caught:
        STATE.check(changed, "f" * 64, 2, tmp_path)
    assert "data.global_batch was 128, is 64" in str(caught.value)
    assert "run.seed was 0, is 1" in str(caught.value)


def test_what_changes_no_step_may_change(tmp_path: Path) -> None:
    changed = Config.parse(
        {
            "data": {"path": "moved", "threads": 8},
            "run": {"dir": "elsewhere", "keep_checkpoints": 9},
            "train": {"max_steps": 100},
        }
    )
    STATE.check(changed, "f" * 64, 2, tmp_path)


def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="written by 2 ranks, and this run has 4"):
        STATE.check(CONFIG, "f" * 64, 4, tmp_path)
