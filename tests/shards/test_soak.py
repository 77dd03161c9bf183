"""Long runs: many kills, many images, many rows. `make soak` runs them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from memory import run_alone

from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

# Builds in this one process, and says what it built and the most memory it held, in MB.
BUILD = """
import sys
from memory import peak_memory
from vse_shards.build import BuildOptions, build
from vse_shards.sources.registry import SourceRequest, open_source
kind, path, out = sys.argv[1:]
summary = build(open_source(kind, SourceRequest(path)), out, BuildOptions())
print(summary.images, summary.pairs, peak_memory() / 1e6)
"""


def tiny_images(folder: Path, count: int) -> list[str]:
    """Different JPEGs of 8 x 8 pixels, a thousand a folder."""
    draws = np.random.default_rng(0)
    names = []
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04d}").mkdir(parents=True)
        name = f"{number // 1000:04d}/{number:07d}.jpg"
        pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (folder / name).write_bytes(simplejpeg.encode_jpeg(pixels, 80))
        names.append(name)
    return names


def build_alone(kind: str, path: Path, out: Path) -> dict[str, float]:
    said = run_alone(BUILD, kind, path, out, seconds=3600)
    return dict(zip(("images", "pairs", "peak"), map(float, said), strict=True))


def test_memory_is_flat_in_the_number_of_images(tmp_path):
    names = tiny_images(tmp_path / "in", 100_000)
    peaks = {}
    for count in (10_000, 100_000):
        path = tmp_path / f"in/rows{count}.jsonl"
        with path.open("w") as rows:
            for name in names[:count]:
                rows.write(json.dumps({"image": name, "captions": ["tiny words"] * 5}) + "\n")
        built = build_alone("jsonl", path, tmp_path / f"out{count}")
        assert built["images"] == count
        peaks[count] = built["peak"]
    print(f"peak memory in MB by images: {peaks}")
    assert peaks[100_000] < 1.1 * peaks[10_000]


def test_a_million_rows_are_planned_and_shuffled_in_bounded_memory(tmp_path):
    names = tiny_images(tmp_path / "in", 200_000)
    path = tmp_path / "in/rows.csv"
    with path.open("w") as rows:
        rows.write("image,caption\n")
        for number in range(5):  # the captions of an image do not stand side by side
            rows.writelines(f"{name},wording {number} of {name}\n" for name in names)
    started = time.monotonic()
    built = build_alone("csv", path, tmp_path / "out")
    print(f"{built}, {time.monotonic() - started:.0f} s")

    assert (built["images"], built["pairs"]) == (200_000, 1_000_000)
    assert built["peak"] < 300


def test_twenty_kills_and_resumes_give_the_same_files(
    small_source, tmp_path, tools, build_and_kill
):
    source = small_source(3000)
    build(JsonlSource(str(source)), str(tmp_path / "whole"), BuildOptions(shard_samples=10))
    in_the_middle = build_and_kill(source, tmp_path / "killed", 10, kills=20, seed=1)
    print(f"{in_the_middle} of 20 kills fell between the first shard and the manifest")

    assert in_the_middle >= 12
    assert tools.digests(tmp_path / "killed") == tools.digests(tmp_path / "whole")
