"""Decoded images to RGB, with Pillow alone: shared by the build and by models that embed files."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


class Rejected(Exception):
    """Raised for an image or a row that must not enter a dataset.

    Attributes:
        reason: category, such as ``truncated``.
        detail: exact finding.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB with its Exif rotation applied, transparent ones over white.

    Raises:
        Rejected: its values have no settled range.
    """
    return to_rgb(ImageOps.exif_transpose(image))


def grey_bits(image: Image.Image) -> int | None:
    """Return how many bits the values of an image of 16 bits use: 8, 10, 12 or 16; else None.

    Cameras and scanners store 12 bits in 16: read as 16 they are nearly black, at most 15 of 255.

    Raises:
        Rejected: its values are not those of 16 bits.
    """
    if not image.mode.startswith("I"):
        return None
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise Rejected("not an image", f"grey values {low} to {high}")
    return next(bits for bits in (8, 10, 12, 16) if high < 1 << bits)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, transparent ones over white.

    Raises:
        Rejected: its values have no settled range.
    """
    bits = grey_bits(image)
    if bits is not None:  # 16 bits a pixel, which Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    elif image.mode == "F":
        raise Rejected("not an image", "floating-point pixels have no settled range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
