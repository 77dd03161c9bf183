"""Region features in place of pixels: read from shards, padded to a batch's longest."""

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
        features: (n, K, C) float32, K the most regions of an image, zero beyond each image's own.
        lengths: (n,) int64, how many are an image's own.
    """

    features: torch.Tensor
    lengths: torch.Tensor


def read_regions(dataset: Dataset, images: npt.NDArray[np.int64]) -> Regions:
    """Read the regions of ``images`` (n,), on the CPU."""
    rows = [dataset.regions(image) for image in images.tolist()]
    lengths = [len(row) for row in rows]
    features = torch.zeros(len(rows), max(lengths), rows[0].shape[1])
    for place, row in zip(features.numpy(), rows, strict=True):
        place[: len(row)] = row
    return Regions(features, torch.tensor(lengths))


def region_reader(
    dataset: Dataset, requests: Iterable[Request[Tag]], device: torch.device
) -> Generator[tuple[Regions, Request[Tag]]]:
    """Yield the regions that every request asks for, on ``device``, in order."""
    stream = side_stream(device)
    for request in requests:
        found = read_regions(dataset, request.images)
        if stream is not None:
            with torch.cuda.stream(stream):
                found = Regions(found.features.to(device), found.lengths.to(device))
            stream.synchronize()
        yield found, request


def region_batches(
    dataset: Dataset, indices: npt.ArrayLike, *, batch: int, device: torch.device
) -> Iterator[Regions]:
    """Yield the regions of ``indices`` (n,) in order, ``batch`` images at once, on ``device``."""
    wanted = np.asarray(indices, dtype=np.int64)
    for start in range(0, len(wanted), batch):
        found = read_regions(dataset, wanted[start : start + batch])
        yield Regions(found.features.to(device), found.lengths.to(device))
