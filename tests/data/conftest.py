from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vse_shards.manifest import Manifest, ShardRecord, Split, run_length_code
from vse_shards.writer import ShardWriter

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


def stretch(image, size):
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
    """What the loader should make of an image, in float64."""
    image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=np.float64)
    if geometry is None:
        return stretch(image, size)
    ratio, top, left, mirrored = np.float32(geometry)
    sides = np.float32(image.shape[:2])
    height, width = np.maximum(np.floor(sides * ratio), 1)
    y = int(np.floor((sides[0] - height) * top))
    x = int(np.floor((sides[1] - width) * left))
    image = stretch(image[y : y + int(height), x : x + int(width)], size)
    return image[:, ::-1] if mirrored else image


def write_split(folder: Path, name: str, shards: list[list[tuple[bytes, list[str]]]]) -> Split:
    records, image = [], 0
    for number, samples in enumerate(shards):
        tar = f"{name}-{number:06d}.tar"
        with (folder / tar).open("wb") as file:
            writer = ShardWriter(file)
            for jpeg, texts in samples:
                width, height = Image.open(io.BytesIO(jpeg)).size
                record = {
                    "image_id": f"image {image}",
                    "captions": [{"id": f"{image}.{j}", "text": t} for j, t in enumerate(texts)],
                    "width": width,
                    "height": height,
                }
                members = {"jpg": jpeg, "json": json.dumps(record).encode()}
                writer.add(f"{image:08d}", members)
                image += 1
            written = writer.finish()
        (folder / tar).with_suffix(".idx").write_text(written.index)
        counts = [len(texts) for _, texts in samples]
        records.append(
            ShardRecord(
                name=tar,
                samples=written.samples,
                pairs=sum(counts),
                bytes=written.bytes,
                sha256=written.sha256,
                index_sha256=hashlib.sha256(written.index.encode()).hexdigest(),
                captions=run_length_code(counts),
            )
        )
    return Split(tuple(records))


def write_dataset(folder: Path, splits: dict[str, list]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        splits={name: write_split(folder, name, shards) for name, shards in splits.items()},
        rejects=0,
        rejects_sha256=hashlib.sha256(b"").hexdigest(),
        build={},
        source={"kind": "test"},
    )
    (folder / "rejects.jsonl").write_text("")
    (folder / "manifest.json").write_text(manifest.dumps())
    return folder


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
    splits = {"train": [samples[:9], samples[9:17], samples[17:23]], "val": [samples[23:]]}
    return write_dataset(tmp_path_factory.mktemp("data") / "set", splits)
