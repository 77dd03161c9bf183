"""Encode a split, each image and each caption once, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vse_scale.data.loader import image_batches
from vse_scale.data.regions import region_batches
from vse_scale.data.shards import ShardDataset
from vse_scale.errors import DatasetError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.embedding import (
    Encoder,
    by_length,
    evaluating,
    pixel_batches,
    text_batches,
)
from vse_scale.world.processes import CPU, World

Progress = Callable[[str, int, int], None]
"""Called with "images" or "captions", how many this rank has encoded, and out of how many."""


@dataclass(frozen=True)
class Embeddings:
    """A split's embeddings, in the order of the dataset.

    Attributes:
        images: (I, D) float32 on the CPU, unit rows.
        captions: (C, D) float32 on the CPU, unit rows; an image's captions are neighbours.
        caption_to_image: (C,) int64, the row in ``images`` of each caption's image.
        image_ids: I ids as the source gave them.
        caption_ids: C ids as the source gave them.
    """

    images: Tensor
    captions: Tensor
    caption_to_image: Tensor
    image_ids: tuple[int | str, ...]
    caption_ids: tuple[int | str, ...]

    def to(self, device: torch.device | str) -> Embeddings:
        """Return the same with images and captions on ``device``."""
        return replace(self, images=self.images.to(device), captions=self.captions.to(device))


@dataclass(frozen=True)
class Share:
    """The rows [start, stop) of ``total`` that one rank encodes.

    A model whose parameters are spread over the ranks (ZeRO stage 3) needs every rank at every
    call, so a rank with fewer batches than the others first repeats the split's first batch
    ``repeats`` times, for nothing.
    """

    start: int
    stop: int
    total: int
    repeats: int

    def rows(self, batch: int) -> NDArray[np.int64]:
        """Return the rows to encode, ``batch`` at a time, the repeats in front."""
        first = np.arange(min(batch, self.total))
        return np.concatenate([*[first] * self.repeats, np.arange(self.start, self.stop)])


def share_of(total: int, batch: int, rank: int, ranks: int) -> Share:
    """Cut ``total`` rows at multiples of ``batch`` into one contiguous share per rank.

    A row's batch is the same for any number of ranks. That is what makes its embedding the same
    too: the shape of a batch decides the last bits of a convolution or a matrix product.
    """
    calls = -(-total // (batch * ranks))
    start = min(rank * calls * batch, total)
    stop = min(start + calls * batch, total)
    return Share(start, stop, total, repeats=calls - -(-(stop - start) // batch))


def encode_split(
    model: Encoder,
    tokenizer: CaptionTokenizer,
    dataset: ShardDataset,
    *,
    batch: int,
    device: torch.device | str,
    threads: int,
    rank: int = 0,
    ranks: int = 1,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Embeddings:
    """Embed all images and captions of ``dataset`` in evaluation mode.

    With ``ranks`` > 1 each rank encodes its share and receives the others' through
    ``torch.distributed``: every rank must call, and every rank returns the same, equal to the bit
    to what one rank alone computes on the same kind of device.

    Args:
        model: returned to the mode (training or evaluation) in which it came.
        tokenizer: turns captions into token ids.
        dataset: one split.
        batch: images, and captions, encoded at once.
        device: where the model is.
        threads: decoding threads.
        rank: this process's rank.
        ranks: how many processes take part.
        progress: called before the first and after every batch.
        check: called after every batch, equally often on all ranks, so that it can communicate.

    Raises:
        ValueError: ``ranks`` is not the size of the process group.
        DatasetError: the split has no captions, or lacks what the model takes, or an image cannot
            be decoded.
    """
    _check_group(rank, ranks)
    device = torch.device(device)
    report = progress or (lambda *_: None)
    check = check or (lambda: None)
    dataset.check_holds("images" if model.input_spec.pixels else "regions")
    records = [dataset.record(index) for index in range(len(dataset))]
    texts = [caption.text for record in records for caption in record.captions]
    image_index = [row for row, record in enumerate(records) for _ in record.captions]
    if not texts:
        raise DatasetError(f"split {dataset.split!r} has no captions; choose one that has")
    order = by_length(texts)
    image_shares = [share_of(len(records), batch, r, ranks) for r in range(ranks)]
    caption_shares = [share_of(len(texts), batch, r, ranks) for r in range(ranks)]
    with evaluating(model):
        rows = image_shares[rank].rows(batch)
        encoded = image_embeddings(
            model, dataset, rows, batch=batch, device=device, threads=threads
        )
        images = _collect(encoded, image_shares[rank], partial(report, "images"), check)
        chosen = [texts[order[row]] for row in caption_shares[rank].rows(batch)]
        encoded = text_batches(model, tokenizer, chosen, batch=batch, device=device)
        captions = _collect(encoded, caption_shares[rank], partial(report, "captions"), check)
    if ranks > 1:
        _exchange(images, image_shares, device)
        _exchange(captions, caption_shares, device)
    in_order = torch.empty_like(captions)
    in_order[torch.tensor(order, dtype=torch.int64)] = captions
    return Embeddings(
        images=images,
        captions=in_order,
        caption_to_image=torch.tensor(image_index, dtype=torch.int64),
        image_ids=tuple(record.image_id for record in records),
        caption_ids=tuple(caption.id for record in records for caption in record.captions),
    )


def image_embeddings(
    model: Encoder,
    dataset: ShardDataset,
    rows: Iterable[int],
    *,
    batch: int,
    device: torch.device,
    threads: int,
) -> Iterator[Tensor]:
    """Yield the embeddings (b, D) of images, of pixels or of regions as the model takes them.

    Args:
        model: in evaluation mode, on ``device``.
        dataset: holds the images.
        rows: their indices.
        batch: images encoded at once.
        device: of the embeddings.
        threads: decoding threads.
    """
    wanted = np.fromiter(rows, dtype=np.int64)
    spec = model.input_spec.pixels
    if spec is None or dataset.features is not None:
        for regions in region_batches(dataset, wanted, batch=batch, device=device):
            yield model.encode_images(regions.features, regions.lengths)
    else:
        decoded = image_batches(dataset, wanted, spec, batch=batch, device=device, threads=threads)
        yield from pixel_batches(model, decoded)


def _check_group(rank: int, ranks: int) -> None:
    size = World.of_group(None, CPU).ranks
    if ranks not in (1, size) or not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} of {ranks}, but the process group has {size}")


def _collect(
    batches: Iterator[Tensor],
    share: Share,
    report: Callable[[int, int], None],
    check: Callable[[], None],
) -> Tensor:
    """Return (total, D) float32 with the share's rows filled in."""
    report(0, share.stop - share.start)
    result: Tensor | None = None
    row = share.start
    for call, encoded in enumerate(batches):
        if result is None:
            result = torch.zeros((share.total, encoded.shape[1]))
        check()
        if call < share.repeats:
            continue
        result[row : row + len(encoded)] = encoded
        row += len(encoded)
        report(row - share.start, share.stop - share.start)
    assert result is not None  # every share has at least one call
    return result


def _exchange(rows: Tensor, shares: list[Share], device: torch.device) -> None:
    """Fill in the rows of the other ranks, in place."""
    world = World.of_group(None, device)
    for source, share in enumerate(shares):
        if share.stop > share.start:
            world.broadcast(rows[share.start : share.stop], source)
