"""Decoded images to RGB, with Pillow alone: shared by the build and by models that embed files."""

from __future__ import annotations

import numpy as np
from PIL import Image


class Rejected(Exception):
    """Raised for an image or a row that must not enter a dataset.

    Attributes:
        reason: category, such as ``truncated``.
        detail: exact finding.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, transparent ones over white.

    Raises:
        Rejected: its values have no settled range.
    """
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip, not scale
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Rejected("not an image", f"grey values {values.min()} to {values.max()}")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise Rejected("not an image", "floating-point pixels have no settled range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
