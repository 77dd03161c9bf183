"""Small sources made on the spot, and the command as a user runs it."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import encoded, write_files
from PIL import Image

from vse_shards.sources import Problem, Row
from vse_shards.sources.registry import SourceRequest, open_source


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A picture that JPEG can hold, unlike any of another seed."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def tools():
    """The helpers above, for tests that make files of their own."""

    class Tools:
        picture = staticmethod(picture)
        encoded = staticmethod(encoded)
        digests = staticmethod(digests)

    return Tools


class Reading:
    """What a source gives: captions by image id, the rows, the problems, the notes."""

    def __init__(self, kind: str, path: object, **request: Any) -> None:
        self.source = open_source(kind, SourceRequest(str(path), **request))
        found = list(self.source.rows())
        self.rows = [row for row in found if isinstance(row, Row)]
        self.problems = [problem for problem in found if isinstance(problem, Problem)]
        self.notes = " | ".join(self.source.notes.lines(self.source.name))
        self.captions: dict[Any, list[str]] = {}
        for row in self.rows:
            self.captions.setdefault(row.image_id, []).extend(c.text for c in row.captions)

    @property
    def stored(self) -> dict[Any, tuple[bytes, list[str]]]:
        """Bytes of the image and captions by image id."""
        found = {}
        for row in self.rows:
            if row.image is not None:
                with open(row.image.path, "rb") as file:
                    file.seek(row.image.offset)
                    data = file.read(row.image.size)
                found[row.image_id] = data, [caption.text for caption in row.captions]
        return found

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(problem.reason, problem.detail) for problem in self.problems]

    def ids(self) -> list[Any]:
        return [caption.id for row in self.rows for caption in row.captions]


@pytest.fixture
def read() -> type[Reading]:
    return Reading


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the folder of the test."""

    def write(name: str, data: str | bytes) -> Path:
        write_files(tmp_path, {name: data if isinstance(data, bytes) else data.encode()})
        return tmp_path / name

    return write


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write a jsonl source with the images that it names; gives the path of the file."""

    def write(rows: Iterable[dict[str, object]], files: dict[str, bytes]) -> Path:
        write_files(tmp_path / "source" / "images", files)
        path = tmp_path / "source" / "captions.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.fixture
def small_source(write_rows: Callable[..., Path]) -> Callable[..., Path]:
    """A source of ``count`` good images, every fifth in split val, with one to three captions."""

    def write(count: int) -> Path:
        files = {f"{n:04d}.jpg": encoded(picture(n), quality=90) for n in range(count)}
        rows = [
            {
                "image": name,
                "image_id": 100 + n,
                "split": "val" if n % 5 == 0 else "train",
                "captions": [f"picture {n}, wording {k}" for k in range(1 + n % 3)],
            }
            for n, name in enumerate(files)
        ]
        return write_rows(rows, files)

    return write


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``vse-shards`` in a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = "from vse_shards.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def build_and_kill() -> Callable[..., int]:
    """Build with 1 and with 4 workers in turn, killed so often at random moments, then to its end.

    Returns how many of the kills fell between the first shard and the manifest.
    """

    def start(arguments: list[str], workers: int) -> subprocess.Popen[bytes]:
        code = "from vse_shards.cli import main; main()"
        command = [sys.executable, "-c", code, *arguments, "--workers", str(workers)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def run(source: Path, out: Path, shard_samples: int, kills: int, seed: int) -> int:
        arguments = ["build", "--source", "jsonl", "--input", str(source), "--out", str(out)]
        arguments += ["--shard-samples", str(shard_samples)]
        draws = random.Random(seed)
        in_the_middle = 0
        for number in range(kills):
            process = start(arguments, workers=(1, 4)[number % 2])
            wanted = len(list(out.glob("*.tar"))) + draws.randint(0, 6)
            while process.poll() is None and len(list(out.glob("*.tar"))) < wanted:
                time.sleep(0.001)
            time.sleep(draws.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
            begun = bool(list(out.glob("*.tar"))) and not (out / "manifest.json").exists()
            in_the_middle += killed and begun
        time.sleep(0.2)  # its workers see that their parent is gone
        assert start(arguments, workers=4).wait() == 0
        return in_the_middle

    return run
