"""Small sources made on the spot, and the command as a user runs it."""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A picture that JPEG can hold, unlike any of another seed."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write a jsonl source with the images that it names; gives the path of the file."""

    def write(rows: Iterable[dict[str, object]], files: dict[str, bytes]) -> Path:
        for name, data in files.items():
            path = tmp_path / "source" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
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
