"""Checkpoints: whole or absent, verified, the one before kept; a foreign one is refused."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vse_scale.config import Config
from vse_scale.errors import CheckpointError, OutputError, StorageError
from vse_scale.files import whole_folder, write_text
from vse_scale.run.lock import RunLock
from vse_scale.training.checkpoint import (
    TENSORS,
    Checkpoints,
    DiskUse,
    finished_checkpoints,
)
from vse_scale.training.failures import explained
from vse_scale.training.resumed import newest_checkpoint, owned
from vse_scale.training.run_state import RunState
from vse_scale.training.setup import load_config
from vse_scale.training.state import write_tensors
from vse_scale.world.processes import ALONE
from vse_shards.plain_files import open_plain

CONFIG = Config.parse({"data": {"path": "shards"}, "run": {"dir": "out"}})
STATE = RunState(step=3, fingerprint="f" * 64, config=CONFIG.model_dump(mode="json"))


WEIGHTS = {"model.weight": torch.arange(500.0)}


def save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.write(WEIGHTS, dataclasses.replace(STATE, step=step))


def test_the_newest_comes_back_with_its_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    save(checkpoints, 3)
    state = dataclasses.replace(STATE, step=12, parts=("a", "b"))
    path = checkpoints.write(WEIGHTS, state)
    assert checkpoints.newest() == (path, state)
    assert torch.equal(load_file(path / TENSORS)["model.weight"], torch.arange(500.0))


def test_the_version_of_the_order_is_kept_and_an_unknown_one_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for order in (1, 2):
        checkpoints.write(WEIGHTS, dataclasses.replace(STATE, order=order))
        found = checkpoints.newest()
        assert found is not None
        assert found[1].order == order
    path = checkpoints.write(WEIGHTS, dataclasses.replace(STATE, order=9))
    with pytest.raises(CheckpointError, match="order: Input should be less than or equal to 2"):
        checkpoints.newest()
    # Written before there was another order.
    state = {k: v for k, v in dataclasses.asdict(STATE).items() if k != "order"}
    (path / "state.json").write_text(json.dumps(state))
    inventory = json.loads((path / "files.json").read_text())
    content = (path / "state.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    inventory["state.json"] = {"bytes": len(content), "sha256": digest}
    (path / "files.json").write_text(json.dumps(inventory))
    found = checkpoints.newest()
    assert found is not None
    assert found[1].order == 1


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 30):
        save(checkpoints, step)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000010", "step-00000030"]


@pytest.mark.parametrize("name", [TENSORS, "state.json", "files.json"])
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
    path = save(checkpoints, 1) / TENSORS
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is not what was written"):
        checkpoints.newest()


def test_a_write_that_was_cut_off_leaves_nothing_that_counts(
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    whole = save(checkpoints, 1)
    calls = iter(range(9))

    def die() -> None:  # after the header of the tensors
        if next(calls) == 1:
            assert list(tmp_path.glob(".*/state.safetensors"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(WEIGHTS, dataclasses.replace(STATE, step=2), die)
    assert checkpoints.newest() == (whole, dataclasses.replace(STATE, step=1))
    assert list(tmp_path.iterdir()) == [whole]
    # A killed process cannot clean up; the next write does.
    left = tmp_path / ".step-00000003.partial"
    left.mkdir()
    (left / "state.safetensors").touch()
    assert checkpoints.newest() == (whole, dataclasses.replace(STATE, step=1))
    assert save(checkpoints, 2).name == "step-00000002"
    assert not left.exists()


def test_a_full_disk_leaves_the_one_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    whole = save(checkpoints, 1)

    def fill(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vse_scale.training.checkpoint.write_tensors", fill)
    with pytest.raises(
        CheckpointError, match=r"step-00000002: cannot be written .*No space.*step-00000001 stays"
    ):
        save(checkpoints, 2)
    assert checkpoints.newest() == (whole, dataclasses.replace(STATE, step=1))
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that not even root writes to, until the test ends."""
    made: list[Path] = []

    def change(folder: Path) -> None:
        done = subprocess.run(["chattr", "+i", folder], capture_output=True)
        if done.returncode:
            pytest.skip("needs root, and a file system with immutable folders")
        made.append(folder)

    yield change
    for folder in made:
        subprocess.run(["chattr", "-i", folder], check=True)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_a_folder_that_becomes_immutable_is_one_line_at_every_write(
    tmp_path: Path, immutable: Callable[[Path], None]
) -> None:
    """After huggingface/setfit#562; a run was started four times, and each start a traceback."""
    run = tmp_path / "run"
    run.mkdir()
    config = Config.parse({"data": {"path": "d"}, "run": {"dir": str(run)}})
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    whole = save(checkpoints, 1)
    immutable(run / "checkpoints")
    with pytest.raises(
        CheckpointError,
        match=r"2: cannot be written \(Operation not permitted\); step-00000001 stays; give ano",
    ):
        save(checkpoints, 2)
    assert checkpoints.newest() == (whole, dataclasses.replace(STATE, step=1))
    immutable(run)
    with pytest.raises(OutputError, match=r"cannot be written .Operation not permitted.; give ano"):
        RunLock(run).__enter__()
    with pytest.raises(OSError) as folder, whole_folder(run / "model"):  # noqa: PT011
        pass
    with pytest.raises(OSError) as file:  # noqa: PT011
        write_text(run / "results.json", "")
    for error in (folder.value, file.value):
        said = str(explained(error, config, 1))
        assert "cannot be written (Operation not permitted); give another, or the right" in said
        assert "the same command goes on from the newest checkpoint" in said
    assert [path.name for path in run.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_for_a_while_is_no_mistake_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its exit code lets the supervisor, or SLURM, start the run again."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    whole = save(checkpoints, 1)

    def fail(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("vse_scale.training.checkpoint.write_tensors", fail)
        with pytest.raises(StorageError, match=r"cannot be written .*step-00000001 stays"):
            save(checkpoints, 2)
        patched.setattr(os, "listdir", fail)
        with pytest.raises(StorageError, match=r"cannot be read .*; look at the disk") as caught:
            checkpoints.newest()
        assert caught.value.exit_code == 75
        with pytest.raises(StorageError):
            newest_checkpoint(checkpoints, ALONE)
    with RunLock(tmp_path / "run") as lock, monkeypatch.context() as patched:
        patched.setattr(Path, "stat", fail)
        with pytest.raises(StorageError, match=r"cannot be written .*; look at the disk"):
            lock.check()
        patched.setattr(Path, "mkdir", fail)
        config = Config.parse({"data": {"path": "d"}, "run": {"dir": str(tmp_path / "other")}})
        with pytest.raises(StorageError), owned(config, ALONE):
            pass
    assert checkpoints.newest() == (whole, dataclasses.replace(STATE, step=1))


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EIO, StorageError, "look at the disk"),
        (errno.ESTALE, StorageError, "look at the disk"),
        (errno.EACCES, CheckpointError, "give the right to read it, or remove it"),
    ],
)
def test_the_newest_that_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    """It would give way to an older one, and the steps in between would be trained again."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    before, newest = save(checkpoints, 1), save(checkpoints, 2)

    def fail(path: Path | str) -> BufferedReader:
        if str(path) == str(newest / TENSORS):
            raise OSError(number, os.strerror(number))
        return open_plain(path)

    monkeypatch.setattr("vse_scale.training.checkpoint.open_plain", fail)
    with pytest.raises(kind, match=f"step-00000002: cannot be read .*{words}"):
        checkpoints.newest()
    shutil.rmtree(newest)  # the remedy where it stays so
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == before


def test_tensors_are_written_as_their_library_writes_them(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5), "a": torch.randn(2), "\u00fc.\"q\"": torch.zeros(0, 4),
        "step": torch.tensor(7.0), "count": torch.tensor(3), "half": torch.ones(3).bfloat16(),
        "many": torch.arange(9_000_000.0), "mask": torch.tensor([True, False]),
        "ids": torch.arange(4, dtype=torch.int32), "wide": torch.ones(1, dtype=torch.float64),
        "bytes": torch.ones(3, dtype=torch.uint8), "short": torch.ones(3, dtype=torch.int16),
        "small": torch.ones(3, dtype=torch.int8), "h": torch.ones(1, dtype=torch.float16),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs")
    digest = write_tensors(tmp_path / "ours", tensors)
    ours = (tmp_path / "ours").read_bytes()
    assert ours == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256(ours).hexdigest()


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="fingerprint ffffffffffff, but shards has 000000"):
        STATE.check(CONFIG, "0" * 64, tmp_path)


@pytest.mark.parametrize(
    "path",
    ["a b/one", ["/a/one", "/b, [two]", "c's"], "s3://key:secret@host/one", "s3://host/one"],
)
def test_what_is_said_of_a_dataset_that_has_grown_goes_on_with_it(
    tmp_path: Path, path: str | list[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    given = {"data": {"path": path}, "run": {"dir": "out"}}
    recipe.write_text(json.dumps(given))
    with pytest.raises(CheckpointError) as caught:
        STATE.check(Config.parse(given), "0" * 64, tmp_path, lambda *_: True)
    said = str(caught.value)
    assert "secret" not in said
    words = shlex.split(said.split("rows appended: ")[1].split(" goes on with")[0])
    changed = words[1:] if words[0] == "--resume-with" else []
    config = load_config(str(recipe), words if not changed else [], 1, changed)
    assert config.data == Config.parse(given).data
    with pytest.raises(CheckpointError, match="kept no length of an epoch"):  # what comes next
        STATE.check(config, "0" * 64, tmp_path, lambda *_: True)


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    changed = Config.parse(
        {"data": {"path": "shards", "global_batch": 64}, "run": {"dir": "out", "seed": 1}}
    )
    with pytest.raises(CheckpointError) as caught:
        STATE.check(changed, "f" * 64, tmp_path)
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
    STATE.check(changed, "f" * 64, tmp_path)


def test_a_configuration_of_a_release_with_fewer_keys_is_understood(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(STATE.config))
    del stored["engine"], stored["optim"]["warmup_steps"], stored["telemetry"]["tensorboard"]
    older = dataclasses.replace(STATE, config=stored)
    older.check(CONFIG, "f" * 64, tmp_path)
    slower = Config.parse(stored | {"optim": stored["optim"] | {"warmup_steps": 9}})
    with pytest.raises(CheckpointError, match=r"optim\.warmup_steps was 0, is 9"):
        older.check(slower, "f" * 64, tmp_path)


def test_a_configuration_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    newer = dataclasses.replace(STATE, config=STATE.config | {"optimism": {"rate": 1}})
    with pytest.raises(CheckpointError, match=r"its configuration: unknown key optimism.*release"):
        newer.check(CONFIG, "f" * 64, tmp_path)


@pytest.mark.parametrize(("algorithm", "checkpoint"), [("adamw", 68 + 2 * 48), ("sgd", 68)])
def test_the_disk_of_a_run(algorithm: str, checkpoint: int) -> None:
    # 12 parameters, 5 numbers in buffers.
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    config = Config.parse(
        {
            "data": {"path": "d"},
            "run": {"dir": "r", "keep_checkpoints": 3},
            "optim": {"algorithm": algorithm},
        }
    )
    disk = DiskUse.of(model, config)
    assert (disk.model, disk.checkpoint, disk.checkpoints) == (68, checkpoint, 4)
    assert disk.total == 4 * checkpoint + 2 * 68


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be read .*; give the right to read it"):
        finished_checkpoints(tmp_path / "file")
    assert finished_checkpoints(tmp_path / "none") == []
