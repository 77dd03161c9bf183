from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

WORDS = ["red", "green", "ball", "cube", "cone", "left", "above", "small", "large", "the", "of"]


def photo(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG with edges, gradients and texture, so that resampling and subsampling matter."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b) for a, b in rng.uniform(-0.6, 0.6, (3, 2))]
    values = np.stack(waves, axis=-1) * 90 + 128 + rng.normal(0, 8, (height, width, 3))
    values[height // 4 : height // 2, width // 3 :] = rng.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def resized(image, size):
    """Bilinear sampling at pixel centres without antialiasing, as OpenCV's INTER_LINEAR."""
    for axis in (0, 1):
        length = image.shape[axis]
        centre = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
        low = np.floor(centre).astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (centre - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def reference(jpeg: bytes, size: int, geometry=None) -> np.ndarray:
    """The expected pixels of an image, in float64."""
    image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=np.float64)
    if geometry is None:
        return resized(image, size)
    ratio, top, left, flipped = np.float32(geometry)
    sides = np.float32(image.shape[:2])
    height, width = np.maximum(np.floor(sides * ratio), 1)
    y = int(np.floor((sides[0] - height) * top))
    x = int(np.floor((sides[1] - width) * left))
    image = resized(image[y : y + int(height), x : x + int(width)], size)
    return image[:, ::-1] if flipped else image


def build_dataset(folder: Path, splits: dict[str, list], shard_samples: int) -> Path:
    """Build a dataset of (JPEG, captions) samples; an image's id is its number over all splits."""
    source = folder / "source"
    source.mkdir(parents=True)
    lines = []
    for split, samples in splits.items():
        for jpeg, captions in samples:
            number = len(lines)
            name = f"{number}.jpg"
            (source / name).write_bytes(jpeg)
            entry = {"image": name, "image_id": number, "captions": captions, "split": split}
            lines.append(json.dumps(entry))
    (source / "captions.jsonl").write_text("\n".join(lines))
    rows = JsonlSource(str(source / "captions.jsonl"), str(source))
    build(rows, str(folder / "set"), BuildOptions(shard_samples=shard_samples))
    return folder / "set"


def caption(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(3, 12)))


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory) -> Path:
    """23 drawn images of many sizes in three shards, 3 to 5 captions each, and a split of 5."""
    rng = np.random.default_rng(3)
    samples = [
        (
            photo(rng, *rng.integers(40, 200, 2)),
            [caption(rng) for _ in range(rng.integers(3, 6))],
        )
        for _ in range(28)
    ]
    splits = {"train": samples[:23], "val": samples[23:]}
    return build_dataset(tmp_path_factory.mktemp("data"), splits, shard_samples=9)
