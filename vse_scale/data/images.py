"""Pixels: what a model expects of them, and the one DALI graph that makes them.

Training, evaluation and serving share `ImageSpec`, which travels with the checkpoint. The graph
emits uint8; normalising runs in torch on the device, since DALI has no bfloat16 and uint8 is a
quarter of the copy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import Pipeline
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vse_scale.errors import ModelError

Channels = tuple[float, float, float]

# ImageNet: statistics of torchvision's models. Detector: Caffe's, as bottom-up attention and
# Detectron use them (BGR, 0 to 255).
_PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {
        "channel_order": "RGB",
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "detector": {
        "channel_order": "BGR",
        "scale": 1.0,
        "mean": (102.9801, 115.9465, 122.7717),
        "std": (1.0, 1.0, 1.0),
    },
}


class ImageSpec(BaseModel):
    """The pixels that a model was trained on.

    Attributes:
        size: both sides in pixels; images are stretched to it.
        channel_order: of the normalised image; decoded pixels are always RGB.
        scale: factor of the 0 to 255 values, applied before ``mean`` and ``std``.
        mean: per channel, in ``channel_order``.
        std: per channel, in ``channel_order``.
        interpolation: of the stretch.
        antialias: whether shrinking averages; the published pipeline, made with OpenCV, does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=1)]
    channel_order: Literal["RGB", "BGR"]
    scale: float
    mean: Channels
    std: Channels
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: bool = False

    @classmethod
    def preset(
        cls, name: Literal["imagenet", "detector"], size: int, *, antialias: bool = False
    ) -> ImageSpec:
        """Return the specification that pretrained weights of this kind expect."""
        return cls(size=size, antialias=antialias, **_PRESETS[name])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn decoded pixels into a model's input.

        Args:
            pixels: (B, S, S, 3) uint8, RGB.

        Returns:
            (B, 3, S, S) float32 with channels-last strides, on the device of ``pixels``.
        """
        values = pixels.flip(-1) if self.channel_order == "BGR" else pixels
        mean, std = _statistics(self, pixels.device)
        return values.float().mul_(self.scale).sub_(mean).div_(std).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which ``from_dict`` reads back as equal."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ImageSpec:
        """Read what ``to_dict`` wrote.

        Raises:
            ModelError: a field is unknown, missing or of the wrong kind.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ModelError(
                f"image specification: {field} is {first['input']!r}: {first['msg']}"
            ) from error


@functools.lru_cache(maxsize=16)
def _statistics(spec: ImageSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy mean and std to the device once: a copy per step would wait for the device."""
    return torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)


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
    """Build the graph from encoded images to (n, S, S, 3) uint8 RGB, for CPU and GPU alike.

    In training the image is cropped by `crop_geometry` and perhaps mirrored; else all of it is
    used. Either way it is stretched to S x S.

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
        A built pipeline; its outputs are the pixels and, unchanged, the numbers.
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
