"""Single pictures to pixels, with Pillow and torch alone: files, Pillow's images and arrays.

`VSEModel.embed` and the commands that embed image files share these functions, so they agree by
construction. A dataset is decoded by DALI. On a CPU the two decoders give the same pixels to the
bit, since both are libjpeg-turbo with its exact transform and fancy upsampling (212 of 212 JPEGs:
photos, odd sizes, all subsamplings, progressive).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vse_scale.errors import DatasetError
from vse_scale.inputs.pixels import ImageSpec

if TYPE_CHECKING:
    from PIL import Image

    Picture: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]


def read_picture(picture: Picture) -> NDArray[np.uint8]:
    """Return a picture as upright RGB, (H, W, 3) uint8, transparent parts over white.

    Args:
        picture: a path, the bytes of a file, an image of Pillow's, or an array (H, W, 3) uint8,
            which is taken as it is.

    Raises:
        DatasetError: it cannot be read, or is no whole image.
        ValueError: an array has another shape or dtype.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"the array is {picture.shape} {picture.dtype}; give (H, W, 3) uint8")
        return picture
    # Here, so that a model opens, and encodes tensors, where there is no Pillow.
    from PIL import Image

    from vse_shards.opening import MAX_FILE_BYTES, open_picture
    from vse_shards.plain_files import read_plain
    from vse_shards.rgb import Rejected, upright_rgb

    if isinstance(picture, Image.Image):
        return np.array(upright_rgb(picture))
    name = "the image" if isinstance(picture, bytes) else str(picture)
    try:
        data = picture if isinstance(picture, bytes) else read_plain(picture, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{name}: cannot be read ({reason})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which is not used
        try:
            with open_picture(data) as image:
                return np.array(upright_rgb(image))
        except (Rejected, Exception) as error:  # Pillow's parsers raise any of many
            reason = " ".join(str(error).split())
            raise DatasetError(f"{name}: is no whole image ({reason})") from error


def resize(
    image: torch.Tensor, out: torch.Tensor, *, antialias: bool, flipped: bool = False
) -> None:
    """Fill ``out`` with the whole image, bilinear, proportions not kept.

    Args:
        image: (H, W, 3) uint8, at least a pixel.
        out: (S, S, 3) uint8.
        antialias: whether shrinking averages.
        flipped: whether left and right change places.
    """
    kernel = torch.ops.aten.upsample_bilinear2d
    if antialias:
        kernel = torch.ops.aten._upsample_bilinear2d_aa
    if flipped:
        image = image.flip(1)
    # The operators rather than `interpolate`, which cannot write into a batch.
    kernel.out(_channels_first(image), out.shape[:2], False, out=_channels_first(out))


def resized_batches(
    pictures: Sequence[Picture], spec: ImageSpec, batch: int
) -> Iterator[torch.Tensor]:
    """Read and resize ``pictures``, ``batch`` at a time.

    Yields:
        (b, S, S, 3) uint8 RGB on the CPU.

    Raises:
        DatasetError, ValueError: as `read_picture`.
    """
    for start in range(0, len(pictures), batch):
        chosen = pictures[start : start + batch]
        pixels = torch.empty((len(chosen), spec.size, spec.size, 3), dtype=torch.uint8)
        for picture, out in zip(chosen, pixels, strict=True):
            found = np.require(read_picture(picture), requirements=["C", "W"])
            resize(torch.from_numpy(found), out, antialias=spec.antialias)
        yield pixels


def _channels_first(image: torch.Tensor) -> torch.Tensor:
    """View (H, W, 3) as (1, 3, H, W) with the channels-last strides that the fast kernel wants."""
    return image.unsqueeze(0).permute(0, 3, 1, 2)
