"""Small pictures for pages that need no network."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMBNAIL_SIDE = 240  # pixels; twice the size shown, for dense screens


def thumbnail(encoded: npt.NDArray[np.uint8] | bytes, side: int = THUMBNAIL_SIDE) -> str:
    """Return the image, at most ``side`` pixels on both sides, as a JPEG data URI."""
    with Image.open(io.BytesIO(bytes(encoded))) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
