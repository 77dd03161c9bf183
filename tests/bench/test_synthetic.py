"""Made photos are like photos in what decoding costs: their bytes and their spectrum."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from vse_scale.bench.synthetic import photo
from vse_scale.data.shards import ShardDataset


def test_a_photo_has_the_bytes_and_the_spectrum_of_one() -> None:
    encoded = photo(np.random.default_rng(1), 480, 640)
    assert 130_000 < len(encoded) < 180_000
    image = Image.open(io.BytesIO(encoded))
    assert (image.size, image.mode, image.format) == ((640, 480), "RGB", "JPEG")
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    power = np.abs(np.fft.fft2(grey - grey.mean()))
    radius = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.fftfreq(640)[None])
    bands = [(0.01, 0.02), (0.08, 0.16)]  # three octaves apart
    low, high = (power[(radius >= a) & (radius < b)].mean() for a, b in bands)
    assert 2.2 < np.log2(low / high) < 4.5  # 3 octaves at a slope of 1 to 1.5, roughly


def test_real_photos_fall_as_steeply(shared: Path) -> None:
    slopes = []
    for path in sorted((shared / "data" / "coco_sample" / "images").glob("*.jpg"))[:20]:
        grey = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
        power = np.abs(np.fft.fft2(grey - grey.mean()))
        height, width = grey.shape
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        bands = [(0.01, 0.02), (0.08, 0.16)]
        low, high = (power[(radius >= a) & (radius < b)].mean() for a, b in bands)
        slopes.append(np.log2(low / high) / 3)
    assert 1.0 < np.median(slopes) < 1.5


def test_a_made_dataset_has_captions_and_two_splits(photos: Path) -> None:
    train, val = (ShardDataset(photos, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (24, 3)
    assert set(train.captions_per_sample) == {5}
    assert len(train.shard_sizes) > 1
    texts = [c.text for image in range(24) for c in train.record(image).captions]
    assert len(set(texts)) > 100
