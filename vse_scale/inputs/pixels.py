"""The pixels that a model expects, the same in training, evaluation and serving."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vse_scale.inputs.fields import check_fields, from_fields, is_count, is_number

if TYPE_CHECKING:
    import torch

Channels = tuple[float, float, float]

_WHAT = "image specification"  # in messages

# ImageNet: statistics of torchvision's models. Detector: Caffe's, as bottom-up attention and
# Detectron use them (BGR, 0 to 255). Lite: EfficientNet-Lite's, as its authors trained it.
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
    "lite": {
        "channel_order": "RGB",
        "scale": 1.0,
        "mean": (127.0, 127.0, 127.0),
        "std": (128.0, 128.0, 128.0),
    },
}


@dataclass(frozen=True)
class ImageSpec:
    """The pixels that a model was trained on; saved with the model.

    Attributes:
        size: both sides in pixels; images are resized to it, their proportions not kept.
        channel_order: of the normalised image; decoded pixels are always RGB.
        scale: factor of the 0 to 255 values, applied before ``mean`` and ``std``.
        mean: per channel, in ``channel_order``.
        std: per channel, in ``channel_order``.
        interpolation: of the resize.
        antialias: whether shrinking averages; the published pipeline, made with OpenCV, does not.

    Raises:
        ModelError: a value is of the wrong kind; the message names field, value and remedy.
    """

    size: int
    channel_order: Literal["RGB", "BGR"]
    scale: float
    mean: Channels
    std: Channels
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("size", is_count(self.size), "a number of pixels, at least 1"),
            ("channel_order", self.channel_order in ("RGB", "BGR"), "RGB or BGR"),
            ("scale", is_number(self.scale), "a number"),
            ("mean", _are_channels(self.mean), "three numbers"),
            ("std", _are_channels(self.std) and 0 not in self.std, "three numbers, none 0"),
            ("interpolation", self.interpolation == "bilinear", "bilinear"),
            ("antialias", isinstance(self.antialias, bool), "true or false"),
        )
        check_fields(self, _WHAT, checks)

    @classmethod
    def preset(
        cls, name: Literal["imagenet", "detector", "lite"], size: int, *, antialias: bool = False
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
    def from_dict(cls, raw: Any) -> ImageSpec:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: a field is unknown, missing or of the wrong kind.
        """
        return from_fields(cls, raw, _WHAT)


def _are_channels(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(is_number, value))


@functools.lru_cache(maxsize=16)
def _statistics(spec: ImageSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy mean and std to the device once: a copy per step would wait for the device."""
    import torch  # here, so that a configuration can be checked without it
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    # A plan runs on tensors without values; kept here, they would normalise nothing ever after.
    with unset_fake_temporarily():
        return torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)
