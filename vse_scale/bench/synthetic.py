"""Synthetic data for a stage without a dataset: photo-like JPEGs in real shards."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

CAPTIONS = 5
_WORDS = 2000
_QUALITY = 90
# Of amplitude over frequency, in logarithms: photographs have 1 to 1.5. With this and the quality
# above an image of 640 x 480 takes 156 KB, as COCO's do.
_SLOPE = 1.2


def make_dataset(folder: Path, *, images: int, side: int) -> Path:
    """Build ``images`` to train on and an eighth as many to validate on, five captions each.

    Args:
        folder: folder to write; the source stays beside the shards.
        images: number of images in split "train".
        side: longer side of each image, in pixels; the shorter is three quarters of it.

    Returns:
        The dataset's folder.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    # Words of COCO's lengths, by Zipf's law.
    words = ["".join(rng.choice(list("etaoinshrdlu"), size)) for size in rng.integers(2, 9, _WORDS)]
    likely = 1 / np.arange(1, _WORDS + 1)
    likely /= likely.sum()
    with (source / "captions.jsonl").open("w") as lines:
        for number in range(images + -(-images // 8)):
            name = f"{number:06d}.jpg"
            (source / name).write_bytes(photo(rng, side * 3 // 4, side))
            captions = [
                " ".join(rng.choice(words, size, p=likely))
                for size in rng.integers(8, 15, CAPTIONS)
            ]
            split = "train" if number < images else "val"
            lines.write(json.dumps({"image": name, "captions": captions, "split": split}) + "\n")
    rows = JsonlSource(str(source / "captions.jsonl"), str(source))
    build(rows, str(folder / "shards"), BuildOptions(shard_samples=max(images // 4, 1)))
    return folder / "shards"


def photo(rng: np.random.Generator, height: int, width: int) -> bytes:
    """Return a JPEG whose amplitudes fall with the frequency as those of photographs do.

    Field, "Relations between the statistics of natural images and the response properties of
    cortical cells", JOSA A 1987.
    """
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = np.maximum(np.hypot(down, across), 1 / max(height, width)) ** -_SLOPE

    def plane(contrast: float) -> NDArray[np.float64]:
        phases = rng.uniform(0, 2 * np.pi, falling.shape)
        waves = np.fft.irfft2(falling * np.exp(1j * phases), s=(height, width))
        return np.asarray(waves * (contrast / waves.std()))

    colours = np.stack([plane(55), plane(14), plane(14)], axis=-1) + 128
    buffer = io.BytesIO()
    values = Image.fromarray(colours.clip(0, 255).astype(np.uint8), "YCbCr")
    values.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
