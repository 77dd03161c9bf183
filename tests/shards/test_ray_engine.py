"""Planned shards made by Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_ray import FakeRay

from vse_shards import ray_engine
from vse_shards.build import BuildOptions, build
from vse_shards.errors import DatasetError, OutputError, SourceError
from vse_shards.machines import seal
from vse_shards.planning import make_plan
from vse_shards.ray_engine import make_with_ray
from vse_shards.sources.registry import SourceRequest, open_source

SMALL = BuildOptions(shard_samples=3)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def out(small_source: Callable[..., Path], tmp_path: Path) -> Path:
    request = SourceRequest(str(small_source(20)))
    build(open_source("jsonl", request), str(tmp_path / "one"), SMALL)
    make_plan(open_source("jsonl", request), str(tmp_path / "many"), SMALL)
    return tmp_path / "many"


@pytest.mark.parametrize(("cores", "tasks"), [(1, 4), (64, 8)])
def test_tasks_make_all_shards(cores: int, tasks: int, out: Path, tmp_path: Path) -> None:
    ray = FakeRay(cores)
    made = ray_engine._run(ray, str(out), 8)
    assert (made.shards, made.written, len(ray.asked)) == (8, 8, tasks)
    assert ray.options == [{"num_cpus": 1, "max_retries": 3}]
    seal(str(out))
    assert digests(out) == digests(tmp_path / "one")


def test_what_a_task_refuses_is_said_as_without_ray(out: Path) -> None:
    (out / ".plan" / "rows-00000.sqlite").write_bytes(b"")
    with pytest.raises(DatasetError, match="run vse-shards plan again"):
        ray_engine._run(FakeRay(), str(out), 8)


def test_a_worker_that_dies_too_often_leaves_the_rest_to_the_next_call(
    out: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"RayError; run the same command again"):
        ray_engine._run(FakeRay(dead=3), str(out), 8)
    assert ray_engine._run(FakeRay(), str(out), 8).written == 6
    seal(str(out))
    assert digests(out) == digests(tmp_path / "one")


def test_another_engine_is_refused(out: Path) -> None:
    with pytest.raises(SourceError, match="--engine spark: is not known; write ray, or ray://"):
        make_with_ray(str(out), "spark")


@pytest.mark.slow
def test_ray_gives_the_files_of_one_machine(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install ray")
    assert make_with_ray(str(out), "ray").written == 8
    assert make_with_ray(str(out), "ray").written == 0
    seal(str(out))
    assert digests(out) == digests(tmp_path / "one")
