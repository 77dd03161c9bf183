"""``vse-scale embed --engine ray``: the files of one process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import vse_scale
from fake_ray import FakeRay

from vse_scale.commands import embed as command
from vse_scale.errors import ConfigError, DatasetError, OutputError, SourceError
from vse_scale.world.processes import World

embed = command.embed


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    command._opened.cache_clear()  # a worker's, which ends with its job
    return fake


@pytest.mark.parametrize("gpus", [0, 2])
def test_tasks_write_the_bytes_of_one_process(
    ray: FakeRay, model_folder: Path, scenes: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, gpus: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, folder in (("model", model_folder), ("scenes", scenes)):
        Path(name).symlink_to(folder)
    asked = {"model": Path("model"), "data": "scenes", "split": "val", "batch": 1, "threads": 1}
    embed(out=Path("one"), **asked)
    ray.gpus = gpus
    embed(out=Path("many"), engine="ray", **asked)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(ray.asked) == 2 + 7  # 20 images and 100 captions in parts of 16
    takes = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    assert ray.options == [takes | {"max_retries": 3}] * 2
    assert ray.addresses == [None]
    embed(out=Path("many"), engine="ray://there:10001", **asked)
    assert len(ray.asked) == 2 + 7  # nothing is missing
    assert ray.addresses[1:] == ["ray://there:10001"]


def test_more_parts_than_tasks_are_shared_out(
    ray: FakeRay, model_folder: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"a ring and {n} squares\n" for n in range(200)))
    asked = {"model": model_folder, "texts": texts, "batch": 1}
    embed(out=tmp_path / "one", **asked)
    ray.cores = 1
    embed(out=tmp_path / "many", engine="ray", **asked)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(ray.asked) == 4  # of 13 parts


def test_parts_of_a_worker_that_dies_are_left_to_the_next_call(
    ray: FakeRay, model_folder: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a ring\na square\n" * 50)
    asked = {"model": model_folder, "texts": texts, "batch": 1, "engine": "ray"}
    ray.dead = 3
    with pytest.raises(OutputError, match="a worker of Ray died: RayError; run the same command"):
        embed(out=tmp_path / "out", **asked)
    assert len(list((tmp_path / "out" / ".parts").glob("*.jsonl"))) == 4  # of two tasks
    embed(out=tmp_path / "out", **asked)
    assert len(ray.asked) == 3 + 5


@pytest.mark.parametrize(
    ("differs", "kind", "message"),
    [
        ("texts", OutputError, "was begun with another sides; go on with the same"),
        ("out", OutputError, "index.json cannot be read .*; name a folder that all machines see"),
        ("gone", DatasetError, "cannot be read"),
    ],
)
def test_a_machine_that_sees_other_files_is_named(
    ray: FakeRay, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    differs: str, kind: type[Exception], message: str,
) -> None:  # fmt: skip
    texts, out = tmp_path / "texts.txt", tmp_path / "out"
    texts.write_text("a ring\na square\n")
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    get = ray.get

    def elsewhere(task):
        if differs == "texts":
            texts.write_text("a ring\na circle\n")
        elif differs == "gone":
            texts.unlink()
        else:
            shutil.rmtree(out)
        return get(task)

    monkeypatch.setattr(ray, "get", elsewhere)
    with pytest.raises(kind, match=f"^on node-7: .*{message}"):
        embed(model=model_folder, out=out, texts=texts, engine="ray")


def test_a_launcher_and_a_cluster_are_one_too_many(
    ray: FakeRay, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def joined() -> Iterator[World]:
        yield World(rank=1, ranks=2)

    monkeypatch.setattr("vse_scale.world.join.joined", joined)
    with pytest.raises(ConfigError, match="--engine ray: a launcher started 2 processes"):
        embed(model=model_folder, out=tmp_path / "out", data="d", engine="ray")


def test_another_engine_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--engine spark: is not known; write ray, or ray://"):
        embed(model=tmp_path / "none", out=tmp_path / "out", data="d", engine="spark")


@pytest.mark.slow
def test_ray_gives_the_bytes_of_one_process(
    model_folder: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="pip install ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for a task of one core
    asked = ("--data", scenes, "--split", "val", "--batch", "1", "--threads", "1")
    for name, more in (("one", ()), ("many", ("--engine", "ray"))):
        done = vse_scale(
            "embed", "--model", os.path.relpath(model_folder), *asked,
            "--out", tmp_path / name, *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
