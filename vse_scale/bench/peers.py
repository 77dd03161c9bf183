"""The usual alternatives to this project's data path, written with care.

The published data path (VSE-infinity's code, after VSE++) is a torch ``Dataset`` of pairs in a
``DataLoader``: a worker decodes an image for every *pair* with OpenCV, crops it, resizes it and
flips some. Here it takes the pairs and random numbers of this project's plan, so that both make the
same pixels and ids, which the tests prove.
"""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from vse_scale.config import DataConfig
from vse_scale.data.images import crop_geometry
from vse_scale.data.loader import Batch
from vse_scale.data.plan import Plan, PlannedBatch
from vse_scale.data.rng import Stream, uniform
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_shards.json_text import parse_json

_READY = 2  # batches that a worker prefetches, torch's default


def decoded_by_opencv(
    encoded: NDArray[np.uint8], size: int, geometry: NDArray[np.float32] | None = None
) -> Any:
    """Decode a JPEG with OpenCV, crop, resize and flip, as the published code does.

    Args:
        encoded: (bytes,) uint8.
        size: S.
        geometry: (4,), a row of `vse_scale.data.images.crop_geometry`; None: the whole image.

    Returns:
        (S, S, 3) uint8, RGB.
    """
    import cv2

    image: Any = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    if geometry is not None:
        ratio, top, left, flipped = geometry
        sides = np.array(image.shape[:2], dtype=np.float32)
        height, width = np.maximum(np.floor(sides * ratio), 1).astype(int)
        y, x = np.floor((sides - (height, width)) * (top, left)).astype(int)
        image = image[y : y + height, x : x + width]
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if geometry is not None and flipped else image


@dataclass(frozen=True)
class Recipe:
    """Ingredients of the batches that every implementation makes.

    Attributes:
        dataset: the split.
        plan: order of the pairs, in mode ``pairs``.
        tokenizer: tokenizer of the captions.
        config: augmentation.
        seed: seed of the augmentation.
        size: side of the pixels.
        grid_cells: cells of the backbone's grid, for the random numbers of size augmentation.
    """

    dataset: ShardDataset
    plan: Plan
    tokenizer: CaptionTokenizer
    config: DataConfig
    seed: int
    size: int
    grid_cells: int

    def words(self, planned: PlannedBatch, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (P, L) ids and (P,) lengths."""
        rng = functools.partial(uniform, self.seed, planned.passes, planned.pairs, Stream.WORDS)
        ids, lengths = self.tokenizer.encode(
            texts, rng, self.config.word_drop, self.config.max_caption_tokens
        )
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def cells(self, planned: PlannedBatch) -> Tensor:
        """Return (P, 1 + grid_cells) random numbers in [0, 1)."""
        count = 1 + self.grid_cells
        return torch.from_numpy(
            uniform(self.seed, planned.passes, planned.pairs, Stream.CELLS, count)
        )


Item = tuple[PlannedBatch, int, NDArray[np.float32]]


class Pairs(torch.utils.data.Dataset[Any]):
    """Pairs as published: an image is decoded anew for each of its pairs."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        records = map(recipe.dataset.record, range(len(recipe.dataset)))
        self._texts = [[caption.text for caption in record.captions] for record in records]

    def __getitem__(self, item: Item) -> tuple[PlannedBatch, Tensor, str]:
        planned, row, geometry = item
        image, caption = planned.pairs[row]
        encoded = self._recipe.dataset.image_bytes(int(image))
        pixels = decoded_by_opencv(encoded, self._recipe.size, geometry)
        return planned, torch.from_numpy(pixels), self._texts[image][caption]

    def collate(self, items: Sequence[tuple[PlannedBatch, Tensor, str]]) -> dict[str, Tensor]:
        """Make a batch in the worker: pixels in shared memory, captions tokenised together."""
        planned = items[0][0]
        ids, lengths = self._recipe.words(planned, [text for *_, text in items])
        return {
            "images": default_collate([pixels for _, pixels, _ in items]),
            "token_ids": ids,
            "token_lengths": lengths,
            "image_ids": torch.from_numpy(np.ascontiguousarray(planned.pairs[:, 0])),
            "cell_draws": self._recipe.cells(planned),
        }


def order(recipe: Recipe) -> Iterator[list[Item]]:
    """Yield the plan's batches, without end, as lists of items of `Pairs`."""
    position = (0, 0)
    while True:
        planned = recipe.plan.batch(*position)
        crop = uniform(recipe.seed, planned.passes, planned.pairs, Stream.CROP, 4)
        geometry = crop_geometry(crop, recipe.config.crop_scale, recipe.config.flip)
        yield [(planned, row, geometry[row]) for row in range(len(geometry))]
        position = recipe.plan.following(*position)


def opencv_batches(recipe: Recipe, *, workers: int, device: torch.device) -> Iterator[Batch]:
    """Yield batches of the published data path, without end, on ``device``."""
    single_threaded()
    pairs = Pairs(recipe)
    loader = DataLoader(
        pairs,
        batch_sampler=order(recipe),
        num_workers=workers,
        collate_fn=pairs.collate,
        pin_memory=device.type == "cuda",
        prefetch_factor=_READY,
        multiprocessing_context="fork",
    )
    for found in loader:
        tensors = {k: v.to(device, non_blocking=True) for k, v in found.items()}
        count = len(tensors["images"])
        yield Batch(
            epoch=0, step=0, wait_seconds=0.0, **tensors,
            image_rows=torch.arange(count, device=device),
            valid=torch.ones(count, dtype=torch.bool, device=device),
        )  # fmt: skip


def single_threaded() -> None:
    """Turn off OpenCV's own threads, also for workers that are forked from this process.

    They would compete with the other workers, and cannot be turned off after a fork.
    """
    import cv2

    cv2.setNumThreads(1)


def webdataset_batches(recipe: Recipe, *, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of `webdataset_samples`, without end, from workers."""
    import webdataset

    yield from webdataset.WebLoader(
        webdataset_samples(recipe), batch_size=None, num_workers=workers, prefetch_factor=_READY,
        multiprocessing_context="fork",
    )  # fmt: skip


def webdataset_samples(recipe: Recipe) -> Iterable[tuple[Tensor, Tensor]]:
    """Make (pixels, ids) with webdataset and Pillow, as in webdataset's documentation.

    Each worker samples shards at random and shuffles samples in a buffer. One call crops and
    resizes, with antialiasing, which Pillow cannot turn off: the work is the same, the pixels are
    not.
    """
    import webdataset
    from PIL import Image

    size, (low, high) = recipe.size, recipe.config.crop_scale

    def sample(found: dict[str, bytes]) -> tuple[Tensor, str]:
        image: Any = Image.open(io.BytesIO(found["jpg"])).convert("RGB")
        ratio = random.uniform(low, high)
        width, height = (max(int(side * ratio), 1) for side in image.size)
        x = random.randint(0, image.width - width)
        y = random.randint(0, image.height - height)
        window = (x, y, x + width, y + height)
        image = image.resize((size, size), Image.Resampling.BILINEAR, window)
        if random.random() < recipe.config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        captions = parse_json(found["json"])["captions"]
        return torch.from_numpy(np.array(image)), random.choice(captions)["text"]

    def collate(items: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng()
        ids, _ = recipe.tokenizer.encode(
            [text for _, text in items],
            lambda count: rng.random((len(items), count), dtype=np.float32),
            recipe.config.word_drop,
            recipe.config.max_caption_tokens,
        )
        return default_collate([pixels for pixels, _ in items]), torch.from_numpy(ids)

    dataset = recipe.dataset
    shards = sorted(map(str, Path(dataset.folder).glob(f"{dataset.split}-*.tar")))
    samples = webdataset.WebDataset(shards, resampled=True, shardshuffle=False)
    batches: Iterable[tuple[Tensor, Tensor]] = (
        samples.shuffle(1000).map(sample).batched(recipe.plan.global_batch, collation_fn=collate)
    )
    return batches
