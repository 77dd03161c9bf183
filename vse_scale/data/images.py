"""The one DALI graph that decodes, and on a GPU makes the pixels which `ImageSpec` describes.

It emits uint8; normalising runs in torch on the device, since DALI has no bfloat16 and uint8 is a
quarter of the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import Pipeline

from vse_scale.inputs.pixels import ImageSpec


def crop_geometry(
    draws: npt.NDArray[np.float32], crop_scale: tuple[float, float], flip: float
) -> npt.NDArray[np.float32]:
    """Turn uniform draws into the published augmentation of each image.

    Args:
        draws: (N, 4) in [0, 1).
        crop_scale: bounds of the ratio of crop to image, the same for both sides.
        flip: probability of mirroring left and right.

    Returns:
        (N, 4) float32: ratio, place of the top edge and of the left edge as fractions of the room
        that the crop leaves, and 1 where the image is mirrored, else 0.
    """
    low, high = crop_scale
    geometry = draws.copy()
    geometry[:, 0] = low + (high - low) * draws[:, 0]
    geometry[:, 3] = draws[:, 3] < flip
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
    """Build the graph from encoded images to uint8 RGB: on a GPU stretched, on a CPU not yet.

    In training the image is cropped by `crop_geometry`; else all of it is used. On a GPU it is then
    stretched to S x S and in training perhaps mirrored; on a CPU `Stretcher` does both.

    Args:
        source: yields batches of (encoded images, each (bytes,) uint8; numbers, (n,) int64) and in
            training of geometry, (n, 4) float32, as a third. The arrays must live until the
            batch's outputs are there: they are not copied.
        batch: most images of a batch.
        spec: size and antialiasing.
        device: where images are decoded; the pixels stay there.
        threads: of the CPU part.
        training: whether the images are augmented.

    Returns:
        A built pipeline; its outputs are the pixels, (n, S, S, 3) on a GPU and n of (H, W, 3) on a
        CPU, and, unchanged, the numbers.
    """
    place = "mixed" if device.type == "cuda" else "cpu"
    device_id = None
    if device.type == "cuda":
        device_id = torch.cuda.current_device() if device.index is None else device.index

    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=2
    )
    with pipeline:
        kinds = [types.UINT8, types.INT64, types.FLOAT] if training else [types.UINT8, types.INT64]
        encoded, numbers, *rest = fn.external_source(
            source=source,
            num_outputs=len(kinds),
            batch=True,
            dtype=kinds,
            ndim=[1, 0, 1][: len(kinds)],
            no_copy=True,
        )
        # Fancy upsampling is what libjpeg does on the CPU; the GPU decoder's default is coarser.
        decoder = {"device": place, "output_type": types.RGB, "jpeg_fancy_upsampling": True}
        if training:
            geometry = rest[0]
            sides = fn.cast(fn.peek_image_shape(encoded)[:2], dtype=types.FLOAT)
            crop = math.max(math.floor(sides * geometry[0]), 1.0)
            start = math.floor((sides - crop) * geometry[1:3])
            images = fn.decoders.image_slice(
                encoded,
                fn.cast(start, dtype=types.INT32),
                fn.cast(crop, dtype=types.INT32),
                axes=[0, 1],
                **decoder,
            )
        else:
            images = fn.decoders.image(encoded, **decoder)
        if place == "mixed":
            images = fn.resize(
                images,
                size=[spec.size, spec.size],
                interp_type=types.INTERP_LINEAR,
                antialias=spec.antialias,
            )
            if training:
                images = fn.flip(images, horizontal=fn.cast(geometry[3], dtype=types.INT32))
        pipeline.set_outputs(images, numbers)
    pipeline.build()
    return pipeline
