"""Region features instead of pixels, read from shards and padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vse_scale.data.decode import Request, Tag, side_stream
from vse_scale.data.mixing import Dataset


@dataclass(frozen=True)
class Regions:
    """The regions of a batch of images.

    Attributes:
        features: (n, K, C) float32, K the most regions of an image, zero beyond each image's own;
            of stored features that were pooled, (n, C).
        lengths: (n,) int64, number of each image's own regions.
    """

    features: torch.Tensor
    lengths: torch.Tensor


def read_regions(dataset: Dataset, image_indices: npt.NDArray[np.int64]) -> Regions:
    """Read the regions of ``image_indices`` (n,), or stored features, on the CPU."""
    source = dataset.features or dataset
    found = [source.regions(image) for image in image_indices.tolist()]
    if found[0].ndim == 1:
        pooled = torch.from_numpy(np.stack(found))
        return Regions(pooled, torch.ones(len(found), dtype=torch.int64))
    lengths = [len(regions) for regions in found]
    features = torch.zeros(len(found), max(lengths), found[0].shape[1])
    for padded, regions in zip(features, found, strict=True):
        own = padded[: len(regions)]
        if regions.dtype == np.float16:  # torch converts it ten times as fast as numpy
            # A copy of a mapped file: torch warns of arrays that cannot be written to.
            own.copy_(torch.from_numpy(regions if regions.flags.writeable else regions.copy()))
        else:
            own.numpy()[:] = regions
    return Regions(features, torch.tensor(lengths))


def region_reader(
    dataset: Dataset, requests: Iterable[Request[Tag]], device: torch.device
) -> Generator[tuple[Regions, Request[Tag]]]:
    """Yield the regions of every request, on ``device``, in order."""
    stream = side_stream(device)
    for request in requests:
        found = read_regions(dataset, request.image_indices)
        if stream is not None:
            with torch.cuda.stream(stream):
                found = Regions(found.features.to(device), found.lengths.to(device))
            stream.synchronize()
        yield found, request


def region_batches(
    dataset: Dataset, image_indices: npt.ArrayLike, *, batch: int, device: torch.device
) -> Iterator[Regions]:
    """Yield the regions of ``image_indices`` (n,) in order, ``batch`` images at a time."""
    wanted = np.asarray(image_indices, dtype=np.int64)
    for start in range(0, len(wanted), batch):
        found = read_regions(dataset, wanted[start : start + batch])
        yield Regions(found.features.to(device), found.lengths.to(device))
