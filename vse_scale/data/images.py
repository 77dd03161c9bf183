"""The DALI graph that decodes images, and on a GPU resizes them to the pixels of an `ImageSpec`.

Its output is uint8; torch normalises on the device, since DALI has no bfloat16 and copying uint8
takes a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from vse_scale.data.producer import GRAPH_BATCHES
from vse_scale.inputs.pixels import ImageSpec

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline


def crop_geometry(
    random_numbers: npt.NDArray[np.float32], crop_scale: tuple[float, float], flip: float
) -> npt.NDArray[np.float32]:
    """Turn random numbers into the published augmentation of each image.

    Args:
        random_numbers: (N, 4), uniform in [0, 1).
        crop_scale: bounds of the ratio of crop to image, the same for both sides.
        flip: probability of flipping left and right.

    Returns:
        (N, 4) float32: ratio of crop to image, offsets of the top and the left edge as fractions of
        the margin that the crop leaves, and 1 where the image is flipped, else 0.
    """
    low, high = crop_scale
    geometry = random_numbers.copy()
    geometry[:, 0] = low + (high - low) * random_numbers[:, 0]
    geometry[:, 3] = random_numbers[:, 3] < flip
    return geometry


def decode_pipeline(
    source: Iterator[tuple[Any, ...]],
    *,
    batch: int,
    spec: ImageSpec,
    device: torch.device,
    threads: int,
    training: bool,
) -> Pipeline:
    """Build the graph from encoded images to uint8 RGB.

    In training the image is cropped by `crop_geometry`; else all of it is used. On a GPU the graph
    then resizes it to S x S and in training flips some; on a CPU `Resizer` does both.

    Args:
        source: yields batches of (encoded images, each (bytes,) uint8; image indices, (n,) int64)
            and in training of geometry, (n, 4) float32, as a third. The arrays are not copied, so
            they must live until the batch is returned.
        batch: largest batch.
        spec: size and antialiasing.
        device: device that decodes the images and holds the pixels.
        threads: threads of the CPU part.
        training: whether the images are augmented.

    Returns:
        A built pipeline; its outputs are the pixels, (n, S, S, 3) on a GPU and n of (H, W, 3) on a
        CPU, and the image indices, unchanged.
    """
    # Here, so that evaluation and search work where DALI is not installed.
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    on_gpu = device.type == "cuda"
    device_id = None
    if on_gpu:
        device_id = torch.cuda.current_device() if device.index is None else device.index

    pipeline = Pipeline(
        batch_size=batch,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=GRAPH_BATCHES,
    )
    with pipeline:
        kinds = [types.UINT8, types.INT64, types.FLOAT] if training else [types.UINT8, types.INT64]
        encoded, image_indices, *rest = fn.external_source(
            source=source,
            num_outputs=len(kinds),
            batch=True,
            dtype=kinds,
            ndim=[1, 0, 1][: len(kinds)],
            no_copy=True,
        )
        pixels = _decoded(encoded, rest[0] if training else None, on_gpu=on_gpu)
        if on_gpu:
            pixels = fn.resize(
                pixels,
                size=[spec.size, spec.size],
                interp_type=types.INTERP_LINEAR,
                antialias=spec.antialias,
            )
            if training:
                pixels = fn.flip(pixels, horizontal=fn.cast(rest[0][3], dtype=types.INT32))
        pipeline.set_outputs(pixels, image_indices)
    pipeline.build()
    return pipeline


def _decoded(encoded: Any, geometry: Any | None, *, on_gpu: bool) -> Any:
    """Decode the crop of ``geometry``, or without one the whole image; nodes of the graph."""
    from nvidia.dali import fn, math, types

    # libjpeg upsamples chroma like this on the CPU; the GPU decoder's default is coarser.
    decoder = {
        "device": "mixed" if on_gpu else "cpu",
        "output_type": types.RGB,
        "jpeg_fancy_upsampling": True,
    }
    if geometry is None:
        return fn.decoders.image(encoded, **decoder)
    sides = fn.cast(fn.peek_image_shape(encoded)[:2], dtype=types.FLOAT)
    crop = math.max(math.floor(sides * geometry[0]), 1.0)
    start = math.floor((sides - crop) * geometry[1:3])
    return fn.decoders.image_slice(
        encoded,
        fn.cast(start, dtype=types.INT32),
        fn.cast(crop, dtype=types.INT32),
        axes=[0, 1],
        **decoder,
    )
