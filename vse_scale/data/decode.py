"""Run the DALI graph over a stream of requests, and return tensors in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from vse_scale.console import log
from vse_scale.data.images import decode_pipeline
from vse_scale.data.mixing import Dataset
from vse_scale.data.resize import Resizer
from vse_scale.errors import DatasetError
from vse_scale.inputs.pictures import read_picture
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.run.extras import is_installed

if TYPE_CHECKING:
    from nvidia.dali.backend import TensorListCPU, TensorListGPU

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Request(Generic[Tag]):
    """A batch of images to decode.

    Attributes:
        image_indices: (n,) int64 indices into the dataset, n at most the decoder's batch.
        tag: returned to the caller beside the pixels.
        geometry: (n, 4) float32 of `crop_geometry`, in training.
    """

    image_indices: npt.NDArray[np.int64]
    tag: Tag
    geometry: npt.NDArray[np.float32] | None = None


class Decoder(Generic[Tag]):
    """An iterator of (pixels (n, S, S, 3) uint8, request), one step of decoding ahead.

    Its tensors are never overwritten. Use it from one thread: taking requests and decoding both
    happen in ``next``. Close it to end its threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        requests: Iterable[Request[Tag]],
        *,
        batch: int,
        spec: ImageSpec,
        device: torch.device,
        threads: int,
        training: bool,
    ) -> None:
        """Build the graph; see `decode_pipeline` for the options.

        On a CPU there are twice ``threads``: some decode, the others resize.
        """
        self._dataset = dataset
        self._spec = spec
        self._device = device
        # Requests in the graph, with the arrays that DALI reads without copying them.
        self._pending: deque[tuple[Request[Tag], tuple[Any, ...]]] = deque()
        self._pipeline = decode_pipeline(
            self._feed(requests),
            batch=batch,
            spec=spec,
            device=device,
            threads=threads,
            training=training,
        )
        self._resizer = Resizer(batch, spec, threads)
        self._stream = side_stream(device)

    def __iter__(self) -> Decoder[Tag]:
        return self

    def __next__(self) -> tuple[torch.Tensor, Request[Tag]]:
        """Return the next batch.

        Raises:
            DatasetError: an image cannot be decoded; the message names shard and member.
        """
        try:
            pixels, image_indices = self._pipeline.run()
        except RuntimeError as error:
            self._blame(error)
            raise
        request, _ = self._pending.popleft()
        if not np.array_equal(image_indices.as_array(), request.image_indices):
            raise RuntimeError("decoded images are not in the order of their requests")
        return self._hand_over(pixels, request), request

    def close(self) -> None:
        """End the threads that resize; DALI's end when the decoder is collected."""
        self._resizer.close()

    def _feed(self, requests: Iterable[Request[Tag]]) -> Iterator[tuple[Any, ...]]:
        for request in requests:
            arrays: tuple[Any, ...] = (
                [self._dataset.image_bytes(int(image)) for image in request.image_indices],
                request.image_indices,
            )
            if request.geometry is not None:
                arrays += (request.geometry,)
            self._pending.append((request, arrays))
            yield arrays

    def _hand_over(
        self, pixels: TensorListCPU | TensorListGPU, request: Request[Tag]
    ) -> torch.Tensor:
        if self._stream is None:
            geometry = request.geometry
            flipped = np.zeros(len(pixels), bool) if geometry is None else geometry[:, 3] > 0
            return self._resizer([pixels[row] for row in range(len(pixels))], flipped)
        # DALI reuses its GPU memory without regard to torch's streams, so torch gets a copy, which
        # is complete before DALI's tensor is released.
        with torch.cuda.stream(self._stream):
            copy = from_dlpack(pixels.as_tensor()).clone()
        self._stream.synchronize()
        copy.record_stream(torch.cuda.current_stream(self._device))
        return copy

    def _blame(self, error: RuntimeError) -> None:
        """Raise DatasetError for the first pending image that fails on its own."""
        pending = [
            image for request, _ in self._pending for image in request.image_indices.tolist()
        ]
        singles = [([self._dataset.image_bytes(image)], np.array([image])) for image in pending]
        pipeline = decode_pipeline(
            iter(singles),
            batch=1,
            spec=self._spec,
            device=self._device,
            threads=1,
            training=False,
        )
        for image in pending:
            try:
                pipeline.run()
            except RuntimeError:
                raise _undecodable(self._dataset, image) from error


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream for copies that do not queue behind the training step; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def image_batches(
    dataset: Dataset,
    image_indices: npt.ArrayLike,
    spec: ImageSpec,
    *,
    batch: int,
    device: torch.device,
    threads: int,
) -> Iterator[torch.Tensor]:
    """Yield the pixels of evaluation, whole images resized, in the order of ``image_indices``.

    Pillow decodes them where DALI is not installed; both give the same on a CPU.

    Args:
        dataset: split that holds the images.
        image_indices: (n,) indices into the dataset.
        spec: pixels of the model.
        batch: images per batch; the last one may be smaller.
        device: device that decodes them and holds the pixels.
        threads: number of threads that decode.

    Yields:
        (b, S, S, 3) uint8.

    Raises:
        DatasetError: an image cannot be decoded; the message names shard and member.
    """
    wanted = np.asarray(image_indices, dtype=np.int64)
    if not is_installed("nvidia.dali"):
        for pixels in _by_pillow(dataset, wanted, spec, batch, threads):
            yield pixels.to(device)
        return
    requests = (
        Request(wanted[start : start + batch], tag=None) for start in range(0, len(wanted), batch)
    )
    decoder = Decoder(
        dataset, requests, batch=batch, spec=spec, device=device, threads=threads, training=False
    )
    with closing(decoder):
        for pixels, _ in decoder:
            yield pixels


def _by_pillow(
    dataset: Dataset, wanted: npt.NDArray[np.int64], spec: ImageSpec, batch: int, threads: int
) -> Iterator[torch.Tensor]:
    _say_that_pillow_decodes()

    def decoded(image: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        try:
            return read_picture(bytes(data))
        except DatasetError as error:
            raise _undecodable(dataset, image) from error

    pool = ThreadPoolExecutor(threads, "vse-decode")
    with pool, closing(Resizer(batch, spec, threads)) as resizer:
        for start in range(0, len(wanted), batch):
            rows = wanted[start : start + batch].tolist()
            # By one thread, in order: a remote dataset lets go of one shard for the next.
            images = list(pool.map(decoded, rows, [dataset.image_bytes(row) for row in rows]))
            yield resizer(images, np.zeros(len(images), bool))


@cache
def _say_that_pillow_decodes() -> None:
    log.info("decoding by Pillow: the same pixels, slower than DALI's (vse-scale[train])")


def _undecodable(dataset: Dataset, image: int) -> DatasetError:
    return DatasetError(
        f"{dataset.name(image)} cannot be decoded; "
        "find all such images with `vse-shards verify --deep` and build again"
    )
