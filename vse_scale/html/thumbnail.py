"""Small pictures for pages that need no network."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from vse_scale.errors import DatasetError
from vse_shards.opening import open_picture
from vse_shards.rgb import Rejected, upright_rgb

THUMBNAIL_SIDE = 240  # pixels; twice the size shown, for dense screens


def thumbnail(encoded: npt.NDArray[np.uint8] | bytes, side: int = THUMBNAIL_SIDE) -> str:
    """Return the image as `small_jpeg` does, as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(small_jpeg(encoded, side)).decode()


def small_jpeg(encoded: npt.NDArray[np.uint8] | bytes, side: int = THUMBNAIL_SIDE) -> bytes:
    """Return the image, at most ``side`` pixels on both sides, as a JPEG.

    Raises:
        DatasetError: it is damaged, or larger than a build takes.
    """
    try:
        with open_picture(bytes(encoded)) as image:
            small = upright_rgb(image)
    except (Rejected, OSError) as error:  # Pillow's own error for damaged pixels
        raise DatasetError(f"a picture cannot be shown: {error}; verify its dataset") from error
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()
