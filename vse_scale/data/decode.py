"""Runs the DALI graph over a stream of requests and hands out tensors in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali.backend import TensorListCPU, TensorListGPU
from torch.utils.dlpack import from_dlpack

from vse_scale.data.images import decode_pipeline
from vse_scale.data.mixing import Dataset
from vse_scale.data.resize import Stretcher
from vse_scale.errors import DatasetError
from vse_scale.inputs.pixels import ImageSpec

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Request(Generic[Tag]):
    """A batch of images to decode.

    Attributes:
        images: (n,) int64 indices into the dataset, n at most the decoder's batch.
        tag: what the caller wants back beside the pixels.
        geometry: (n, 4) float32 as `crop_geometry` gives it, in training.
    """

    images: npt.NDArray[np.int64]
    tag: Tag
    geometry: npt.NDArray[np.float32] | None = None


class Decoder(Generic[Tag]):
    """An iterator of (pixels (n, S, S, 3) uint8, request), one step of decoding ahead.

    The tensors stay valid for as long as they are kept. Use it from one thread: taking requests
    and decoding both happen in ``next``. Close it to end its threads.
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

        On a CPU there are twice ``threads``: those that decode, and those that stretch.
        """
        self._dataset = dataset
        self._spec = spec
        self._device = device
        # Requests that DALI has taken and not yet given back, with the arrays that it reads.
        self._pending: deque[tuple[Request[Tag], tuple[Any, ...]]] = deque()
        self._pipeline = decode_pipeline(
            self._feed(requests),
            batch=batch,
            spec=spec,
            device=device,
            threads=threads,
            training=training,
        )
        self._stretcher = Stretcher(batch, spec, threads)
        self._stream = side_stream(device)

    def __iter__(self) -> Decoder[Tag]:
        return self

    def __next__(self) -> tuple[torch.Tensor, Request[Tag]]:
        """Return the next batch.

        Raises:
            DatasetError: an image cannot be decoded; the message names shard and member.
        """
        try:
            pixels, numbers = self._pipeline.run()
        except RuntimeError as error:
            self._blame(error)
            raise
        request, _ = self._pending.popleft()
        if not np.array_equal(numbers.as_array(), request.images):
            raise RuntimeError("decoded images are not in the order in which they were asked for")
        return self._hand_over(pixels, request), request

    def close(self) -> None:
        """End the threads that stretch; DALI's end when the decoder is collected."""
        self._stretcher.close()

    def _feed(self, requests: Iterable[Request[Tag]]) -> Iterator[tuple[Any, ...]]:
        for request in requests:
            arrays: tuple[Any, ...] = (
                [self._dataset.image_bytes(int(image)) for image in request.images],
                request.images,
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
            mirrored = np.zeros(len(pixels), bool) if geometry is None else geometry[:, 3] > 0
            return self._stretcher([pixels[row] for row in range(len(pixels))], mirrored)
        # DALI recycles its GPU memory without regard to torch's streams, so torch gets a copy,
        # finished before DALI's tensor is let go.
        with torch.cuda.stream(self._stream):
            copy = from_dlpack(pixels.as_tensor()).clone()
        self._stream.synchronize()
        copy.record_stream(torch.cuda.current_stream(self._device))
        return copy

    def _blame(self, error: RuntimeError) -> None:
        """Raise DatasetError for the first pending image that fails on its own."""
        images = [image for request, _ in self._pending for image in request.images.tolist()]
        singles = [([self._dataset.image_bytes(image)], np.array([image])) for image in images]
        pipeline = decode_pipeline(
            iter(singles),
            batch=1,
            spec=self._spec,
            device=self._device,
            threads=1,
            training=False,
        )
        for image in images:
            try:
                pipeline.run()
            except RuntimeError:
                raise DatasetError(
                    f"{self._dataset.name(image)} cannot be decoded; "
                    "find all such images with `vse-shards verify --deep` and build again"
                ) from error


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream on which copies do not queue behind the training step; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def image_batches(
    dataset: Dataset,
    indices: npt.ArrayLike,
    spec: ImageSpec,
    *,
    batch: int,
    device: torch.device,
    threads: int,
) -> Iterator[torch.Tensor]:
    """Yield images as evaluation sees them, whole and stretched, in the order of ``indices``.

    Args:
        dataset: where the images are.
        indices: (n,) image indices.
        spec: of the model.
        batch: images at once; the last batch may be smaller.
        device: where they are decoded and stay.
        threads: DALI's.

    Yields:
        (b, S, S, 3) uint8.

    Raises:
        DatasetError: an image cannot be decoded; the message names shard and member.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    requests = (
        Request(wanted[start : start + batch], tag=None) for start in range(0, len(wanted), batch)
    )
    decoder = Decoder(
        dataset, requests, batch=batch, spec=spec, device=device, threads=threads, training=False
    )
    with closing(decoder):
        for pixels, _ in decoder:
            yield pixels
