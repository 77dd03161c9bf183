"""The training loader: one background thread that decodes, tokenises and keeps a few batches ahead.

The contents of a batch are a function of the plan, the seed and the position alone. The number of
ranks decides where it is cut; threads and queues only decide when it is ready.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from vse_scale.config import DataConfig
from vse_scale.data.decode import Decoder, Request, image_batches, side_stream
from vse_scale.data.equal import caption_keys, ids_over_ranks
from vse_scale.data.images import crop_geometry
from vse_scale.data.mixing import Dataset
from vse_scale.data.plan import Indices, Plan, PlannedBatch
from vse_scale.data.producer import Producer
from vse_scale.data.regions import Regions, region_reader
from vse_scale.data.rng import Stream, uniform
from vse_scale.inputs.spec import InputSpec
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.world.gather import Exchange
from vse_scale.world.processes import World

__all__ = ["Batch", "Loader", "image_batches"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch: N images and their P pairs; tensors on the device.

    Attributes:
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        images: pixels (N, S, S, 3) uint8 RGB, or features of regions (N, K, C) float32.
        token_ids: (P, L) int64, L the longest caption of this part.
        token_lengths: (P,) int64, [CLS] and [SEP] included.
        image_rows: (P,) int64, the row of ``images`` that each caption belongs to.
        image_ids: (P,) int64, image index in the dataset; equal ids are never negatives.
        valid: (P,) bool, False for padding that loss and metrics must ignore.
        cell_draws: (N, 1 + grid_cells) float32 uniform in [0, 1): the u of size augmentation, then
            one per cell of the grid, or per region.
        region_lengths: (N,) int64, number of each image's own regions; None for pixels.
        caption_keys: (P, 2) int64, equal for captions of the same words; None where
            ``data.equal_captions`` is "negatives".
        wait_seconds: seconds that the trainer waited for this batch.
    """

    epoch: int
    step: int
    images: torch.Tensor
    token_ids: torch.Tensor
    token_lengths: torch.Tensor
    image_rows: torch.Tensor
    image_ids: torch.Tensor
    valid: torch.Tensor
    cell_draws: torch.Tensor
    wait_seconds: float
    region_lengths: torch.Tensor | None = None
    caption_keys: torch.Tensor | None = None

    def compared(self, world: World) -> tuple[Batch, Exchange]:
        """Return the batch with ids that are equal for images of one caption, on whatever ranks.

        They are as they were where ``data.equal_captions`` is "negatives". The exchange has counted
        what that took.
        """
        exchange = Exchange(world.group, world.device)
        if self.caption_keys is None:
            return self, exchange
        ids = ids_over_ranks(self.image_ids, self.caption_keys, exchange)
        return replace(self, image_ids=ids), exchange

    def split(self, parts: int) -> list[Batch]:
        """Cut into ``parts`` of equally many whole images with their pairs, in order."""
        cut = {
            field.name: getattr(self, field.name).chunk(parts)
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        cut["image_rows"] = tuple(rows - rows[0] for rows in cut["image_rows"])
        return [
            replace(self, **{name: pieces[part] for name, pieces in cut.items()})
            for part in range(parts)
        ]


@dataclass(frozen=True)
class _Planned:
    """Position of a request, its pairs, and their captions."""

    epoch: int
    step: int
    batch: PlannedBatch
    texts: list[str]


_Source = Decoder[_Planned] | Generator[tuple[Regions, Request[_Planned]]]


class Loader:
    """An endless iterator over one rank's batches.

    Its thread stops when it is closed or collected, and when the interpreter exits.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        tokenizer: CaptionTokenizer,
        spec: InputSpec,
        config: DataConfig,
        *,
        seed: int,
        rank: int,
        ranks: int,
        device: torch.device,
        start: tuple[int, int] = (0, 0),
        grid_cells: int = 0,
    ) -> None:
        """Start decoding.

        Args:
            dataset: the split that ``plan`` was made for.
            plan: order of the pairs.
            tokenizer: tokenizer of the captions.
            spec: the model's inputs: pixels or region features, and most tokens of a caption.
            config: augmentation, threads and prefetching.
            seed: seed of the augmentation.
            rank: rank of this process.
            ranks: number of ranks that share a global batch.
            device: device of the tensors.
            start: (epoch, step) of the first batch; a step of ``plan.steps_per_epoch`` is the start
                of the next epoch.
            grid_cells: cells of the backbone's grid, or most regions of an image, for
                ``Batch.cell_draws``.

        Raises:
            PlanError: the global batch does not divide over the ranks.
        """
        epoch, step = start
        position = plan.following(epoch, step - 1) if step else start
        first = plan.part(*position, rank, ranks)  # raises here rather than in the thread
        assembler = _Assembler(
            dataset,
            plan,
            tokenizer,
            config,
            max_tokens=spec.max_tokens,
            seed=seed,
            device=device,
            grid_cells=grid_cells,
        )
        requests = assembler.requests(position, rank, ranks)
        source: _Source
        if spec.pixels is None or dataset.features is not None:
            source = region_reader(dataset, requests, device)
        else:
            source = Decoder(
                dataset,
                requests,
                batch=len(first.pairs) // plan.captions_per_image,
                spec=spec.pixels,
                device=device,
                threads=config.threads,
                training=True,
            )
        self._device = device
        self._failure: BaseException | None = None
        self._producer = Producer(assembler.batches(source), config.prefetch)
        # The thread holds the producer, not the loader, so that an abandoned loader is collected.
        self._finalizer = weakref.finalize(self, self._producer.stop)
        self._finalizer.atexit = False  # see Producer

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """Wait for the next batch and return it.

        Raises:
            DatasetError: an image cannot be decoded; the message names shard and member. Any other
                error in the thread is raised here too, now and on every later call.
            RuntimeError: the loader is closed.
        """
        if self._failure is not None:
            raise self._failure
        started = time.perf_counter()
        item = self._producer.take()
        waited = time.perf_counter() - started
        if isinstance(item, BaseException):
            self._failure = item
            self.close()
            raise item
        if self._device.type == "cuda":
            _keep_for_stream(item, torch.cuda.current_stream(self._device))
        return replace(item, wait_seconds=waited)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for it; closing twice does nothing."""
        self._finalizer()


class _Assembler:
    """Turns a plan into decoding requests, and decoded pixels into batches."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        tokenizer: CaptionTokenizer,
        config: DataConfig,
        *,
        max_tokens: int,
        seed: int,
        device: torch.device,
        grid_cells: int,
    ) -> None:
        self._dataset = dataset
        self._plan = plan
        self._tokenizer = tokenizer
        self._config = config
        self._max_tokens = max_tokens
        self._seed = seed
        self._device = device
        self._grid_cells = grid_cells
        self._stream = side_stream(device)

    def requests(
        self, position: tuple[int, int], rank: int, ranks: int
    ) -> Iterator[Request[_Planned]]:
        """Yield decoding requests from ``position`` on, without end."""
        while True:
            epoch, step = position
            batch = self._plan.part(epoch, step, rank, ranks)
            if self._dataset.remote:
                ahead = self._config.cache_ahead
                self._dataset.prepare(
                    *self._plan.shards(epoch, step, ahead, rank=rank, ranks=ranks)
                )
            # An image of k captions is decoded once, with the random numbers of its first pair.
            k = self._plan.captions_per_image
            leading = batch.pairs[::k]
            crop = uniform(self._seed, batch.passes[::k], leading, Stream.CROP, 4)
            yield Request(
                image_indices=np.ascontiguousarray(leading[:, 0]),
                tag=_Planned(epoch, step, batch, self._texts(batch.pairs)),
                geometry=crop_geometry(crop, self._config.crop_scale, self._config.flip),
            )
            position = self._plan.following(epoch, step)

    def batches(self, source: _Source) -> Generator[Batch]:
        """Yield a batch per decoded request; close the source at the end."""
        with closing(source):
            for found, request in source:
                if isinstance(found, Regions):
                    yield self._assemble(found.features, found.lengths, request.tag)
                else:
                    yield self._assemble(found, None, request.tag)

    def _assemble(
        self, images: torch.Tensor, region_lengths: torch.Tensor | None, planned: _Planned
    ) -> Batch:
        pairs, passes = planned.batch.pairs, planned.batch.passes
        k = self._plan.captions_per_image
        token_ids, token_lengths = self._tokenizer.encode(
            planned.texts,
            functools.partial(uniform, self._seed, passes, pairs, Stream.WORDS),
            self._config.word_drop,
            self._max_tokens,
        )
        count = 1 + self._grid_cells
        cells = uniform(self._seed, passes[::k], pairs[::k], Stream.CELLS, count)
        arrays = {
            "token_ids": token_ids,
            "token_lengths": token_lengths,
            "image_rows": np.arange(len(pairs)) // k,
            "image_ids": np.ascontiguousarray(pairs[:, 0]),
            "valid": planned.batch.valid,
            "cell_draws": cells,
        }
        if self._config.equal_captions == "positives":
            arrays["caption_keys"] = caption_keys(planned.texts)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                tensors = {name: tensor.to(self._device) for name, tensor in tensors.items()}
            self._stream.synchronize()
        return Batch(
            epoch=planned.epoch,
            step=planned.step,
            images=images,
            region_lengths=region_lengths,
            wait_seconds=0.0,
            **tensors,
        )

    def _texts(self, pairs: Indices) -> list[str]:
        records = {image: self._dataset.record(image) for image in set(pairs[:, 0].tolist())}
        return [records[image].captions[caption].text for image, caption in pairs.tolist()]


def _keep_for_stream(batch: Batch, stream: torch.cuda.Stream) -> None:
    """Tell torch's allocator that ``stream`` uses tensors made on another one."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            value.record_stream(stream)
