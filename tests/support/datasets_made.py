"""Small datasets that are the same on every machine, made by the commands that users type."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
from commandline import installed
from numpy.typing import NDArray

WORDS = ("ball", "dog", "ring", "tree", "lamp", "boat", "hat")


def vse_shards(*arguments: str | Path) -> None:
    """Run the command as a user would; fail with what it said."""
    command = [installed("vse-shards"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def drawn_scenes(folder: Path, images: int, seed: int, shard_samples: int) -> Path:
    """Draw ``images`` scenes, a fifth of them split ``val``, and build a dataset of them."""
    source, out = folder / "source", folder / "shards"
    vse_shards("demo", "--images", images, "--seed", seed, "--out", source)
    vse_shards(
        *("build", "--source", "jsonl", "--input", source / "captions.jsonl", "--out", out),
        *("--images", source, "--shard-samples", shard_samples, "--workers", 1),
    )
    return out


def drawn_numbers(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Multiples of 1/128 in [-1, 1) that ``name`` decides; SHAKE is the same in every release."""
    count = int(np.prod(shape))
    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(count), dtype=np.uint8)
    return (drawn.astype(np.float32) / 128 - 1).reshape(shape)


def region_dataset(folder: Path, images: dict[str, int], regions: int, channels: int) -> Path:
    """Build a dataset of features with two captions an image; ``images`` counts them by split.

    The runs under ``tests/old_runs`` were trained on one: it must stay what it is.
    """
    source, out = folder / "precomp", folder / "shards"
    source.mkdir(parents=True)
    first = 0
    for split, count in images.items():
        # What is an image's own makes its regions alike, and so something to learn.
        own = drawn_numbers(f"{split} images", (count, 1, channels))
        features = own + drawn_numbers(f"{split} regions", (count, regions, channels)) / 2
        np.save(source / f"{split}_ims.npy", features)
        numbers = range(first, first := first + count)
        (source / f"{split}_ids.txt").write_text("".join(f"{n}\n" for n in numbers))
        lines = (
            f"a {WORDS[n % 7]} beside a {WORDS[n // 7 % 7]} near the {way}\n"
            for n in numbers
            for way in ("house", "road up the hill")
        )
        (source / f"{split}_caps.txt").write_text("".join(lines))
    vse_shards(
        *("build", "--source", "precomp", "--input", source, "--out", out),
        *("--shard-samples", 16, "--workers", 1),
    )
    return out


def fingerprint(dataset: Path) -> str:
    """Return the digest of everything in a dataset."""
    return str(json.loads((dataset / "manifest.json").read_text())["fingerprint"])
