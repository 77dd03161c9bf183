"""Stage ``eval``: encode a split and rank it, beside the published loop.

The published code encodes an image once per caption, multiplies in numpy and sorts all candidates
of every query. A second implementation of it encodes each image once, which separates that cost
from the rest of the difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from vse_scale.bench.comparison import Implementation, Sample, fastest, powers_of_two, take_turns
from vse_scale.bench.job import Job
from vse_scale.bench.peers import decoded_by_opencv, single_threaded
from vse_scale.bench.plain import PlainModel
from vse_scale.bench.rows import Row, make_rows
from vse_scale.bench.setting import open_split, ready
from vse_scale.config import Config
from vse_scale.data.mixing import caption_texts
from vse_scale.data.shards import ShardDataset
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_scale.retrieval.encode import encode_split
from vse_scale.retrieval.ranks import recall_at_k

PEER = "published loop"


def measure(job: Job) -> Iterator[list[Row]]:
    """Yield the rows of the validation split, or of "train" if there is none."""
    config = ready(job)
    split = "val" if "val" in open_split(config, "train").splits else "train"
    shared = {"config": config, "split": split, "cores": job.cores, "device": job.device}
    once = {**shared, "per_pair": False, "threads": 1}
    if not job.small:
        # As in training, threads may compete with the workers for cores.
        once["threads"] = fastest(
            {
                count: Implementation(f"{count} threads", published, {**once, "threads": count})
                for count in powers_of_two(job.cores)
            }
        )
    implementations = [
        Implementation(PEER, published, {**once, "per_pair": True}),
        Implementation("published loop, each image once", published, once),
        Implementation("vse_scale", ours, shared),
    ]
    if job.small:
        del implementations[1]
    results = take_turns(implementations, job.repeats, small=job.small)
    dataset, image = open_split(config, split), config.model.image
    case = f"{image.backbone}, {image.size} px, {len(dataset)} images, {dataset.pairs} captions"
    yield make_rows(job, "eval", case, results, peer=PEER, unit="pairs/s")


def ours(config: Config, split: str, cores: int, device: torch.device) -> Iterator[Sample]:
    """Encode with `encode_split` and rank with `recall_at_k`."""
    torch.set_num_threads(cores)
    model, tokenizer, dataset = _opened(config, split, device)
    while True:
        began = time.perf_counter()
        found = encode_split(
            model, tokenizer, dataset, batch=config.eval.batch, device=device, threads=cores
        ).to(device)
        recall_at_k(found.images, found.captions, found.caption_to_image)
        yield Sample(dataset.pairs, time.perf_counter() - began)


def published(
    config: Config, split: str, cores: int, device: torch.device, per_pair: bool, threads: int
) -> Iterator[Sample]:
    """Encode by batches in float32, with a worker per core to decode; multiply, sort in numpy."""
    torch.set_num_threads(threads)
    model, tokenizer, dataset = _opened(config, split, device)
    plain = PlainModel(model).to(device).eval()
    image_of_caption = np.repeat(np.arange(len(dataset)), dataset.captions_per_sample)
    single_threaded()
    batches: DataLoader[Any] = DataLoader(
        WholeImages(dataset, model.image_spec.size),
        batch_size=config.eval.batch,
        sampler=image_of_caption.tolist() if per_pair else range(len(dataset)),
        num_workers=cores,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
    )
    while True:
        began = time.perf_counter()
        with torch.no_grad():
            image_rows = encoded_images(plain, model.image_spec, batches)
            caption_rows = encoded_captions(plain, tokenizer, dataset, config, device)
        if per_pair:
            image_rows = image_rows[np.unique(image_of_caption, return_index=True)[1]]
        for ranks in sorted_ranks(image_rows, caption_rows, image_of_caption):
            [100.0 * (ranks < k).mean() for k in (1, 5, 10)]
        yield Sample(dataset.pairs, time.perf_counter() - began)


def encoded_images(
    plain: PlainModel, spec: ImageSpec, batches: Iterable[Tensor]
) -> NDArray[np.float32]:
    """Return an embedding for every image of ``batches``, (b, S, S, 3) uint8 each."""
    device = next(plain.parameters()).device
    rows = [
        plain.encode_images(spec.normalise(pixels.to(device, non_blocking=True))).cpu()
        for pixels in batches
    ]
    return np.asarray(torch.cat(rows).numpy())


def encoded_captions(
    plain: PlainModel,
    tokenizer: CaptionTokenizer,
    dataset: ShardDataset,
    config: Config,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return an embedding for every caption, in the order of the dataset."""
    texts = list(caption_texts(dataset))
    rows, batch = [], config.eval.batch
    for start in range(0, len(texts), batch):
        ids, lengths = tokenizer.encode(
            texts[start : start + batch], max_tokens=config.data.max_caption_tokens
        )
        there = (torch.from_numpy(array).to(device) for array in (ids, lengths))
        rows.append(plain.encode_captions(*there).cpu())
    return np.asarray(torch.cat(rows).numpy())


def sorted_ranks(
    image_rows: NDArray[np.float32],
    caption_rows: NDArray[np.float32],
    image_of_caption: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank as published, by sorting all candidates of every query.

    Args:
        image_rows: (I, D) embeddings.
        caption_rows: (C, D) embeddings.
        image_of_caption: (C,) image index of each caption.

    Returns:
        Ranks from 0: of the best caption of each image (I,), and of each caption's image (C,).
    """
    scores = image_rows @ caption_rows.T
    of_images = np.zeros(len(image_rows), dtype=np.int64)
    of_captions = np.zeros(len(caption_rows), dtype=np.int64)
    for image, row in enumerate(scores):
        order = np.argsort(row)[::-1]
        of_images[image] = np.flatnonzero(image_of_caption[order] == image)[0]
    for caption, row in enumerate(scores.T):
        order = np.argsort(row)[::-1]
        of_captions[caption] = np.flatnonzero(order == image_of_caption[caption])[0]
    return of_images, of_captions


def _opened(
    config: Config, split: str, device: torch.device
) -> tuple[VSEModel, CaptionTokenizer, ShardDataset]:
    start = str(config.model.init_from)
    model = VSEModel.from_pretrained(start).to(device)
    return model, CaptionTokenizer.load(start), open_split(config, split)


class WholeImages(torch.utils.data.Dataset[Tensor]):
    """Whole images, decoded with OpenCV."""

    def __init__(self, dataset: ShardDataset, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __getitem__(self, image: int) -> Tensor:
        return torch.from_numpy(decoded_by_opencv(self._dataset.image_bytes(image), self._size))
