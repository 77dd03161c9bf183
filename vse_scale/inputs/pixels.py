"""Pixels: what a model expects of them. Training, evaluation and serving share this."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

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


@dataclass(frozen=True)
class ImageSpec:
    """The pixels that a model was trained on; it travels with the checkpoint.

    Attributes:
        size: both sides in pixels; images are stretched to it.
        channel_order: of the normalised image; decoded pixels are always RGB.
        scale: factor of the 0 to 255 values, applied before ``mean`` and ``std``.
        mean: per channel, in ``channel_order``.
        std: per channel, in ``channel_order``.
        interpolation: of the stretch.
        antialias: whether shrinking averages; the published pipeline, made with OpenCV, does not.
    """

    size: int
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
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ImageSpec:
        """Read what ``to_dict`` wrote.

        Checked by hand, since a model folder opens without pydantic.

        Raises:
            ModelError: a field is unknown, missing or of the wrong kind.
        """
        if not isinstance(raw, dict):
            raise ModelError(f"image specification: is {raw!r}, not fields by name")
        required = {field.name for field in fields(cls)} - {"interpolation", "antialias"}
        for name in sorted(required - raw.keys()):
            raise ModelError(f"image specification: {name} is missing")
        for name, value in raw.items():
            if name not in _KINDS:
                raise ModelError(f"image specification: {name} is {value!r}: no such field")
            kind, fits = _KINDS[name]
            if not fits(value):
                raise ModelError(f"image specification: {name} is {value!r}: give {kind}")
        return cls(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_channels(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": (
        "a number of pixels, at least 1",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    ),
    "channel_order": ("RGB or BGR", lambda value: value in ("RGB", "BGR")),
    "scale": ("a number", _is_number),
    "mean": ("three numbers", _are_channels),
    "std": ("three numbers, none 0", lambda value: _are_channels(value) and 0 not in value),
    "interpolation": ("bilinear", lambda value: value == "bilinear"),
    "antialias": ("true or false", lambda value: isinstance(value, bool)),
}


@functools.lru_cache(maxsize=16)
def _statistics(spec: ImageSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy mean and std to the device once: a copy per step would wait for the device."""
    return torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)
