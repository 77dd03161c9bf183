"""What people use in this project's place, done as a good engineer would do it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def decoded_by_opencv(
    encoded: Pixels, size: int, geometry: NDArray[np.float32] | None = None
) -> Any:
    """Decode a JPEG with OpenCV, crop, stretch and mirror, as the published code does.

    Args:
        encoded: (bytes,) uint8.
        size: S.
        geometry: (4,) of `vse_scale.data.images.crop_geometry`; None: the whole image.

    Returns:
        (S, S, 3) uint8, RGB.
    """
    import cv2

    image: Any = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    if geometry is not None:
        ratio, top, left, mirrored = geometry
        sides = np.array(image.shape[:2], dtype=np.float32)
        height, width = np.maximum(np.floor(sides * ratio), 1).astype(int)
        y, x = np.floor((sides - (height, width)) * (top, left)).astype(int)
        image = image[y : y + height, x : x + width]
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if geometry is not None and mirrored else image
