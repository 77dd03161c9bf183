"""Strict decoding of images, and their conversion to upright RGB JPEGs.

A JPEG is *fit* if training can read it unchanged: baseline, three components, upright. A fit JPEG
is stored byte for byte, but for what follows its end and for the place where it was taken. Every
other image that decodes is converted: Exif rotation is applied, and grey, CMYK, palette, 16-bit and
transparent images (over white) become RGB. The rest is rejected.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from vse_shards.jpeg import JpegHeader, is_jpeg, mended, trimmed
from vse_shards.opening import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from vse_shards.opening import check_size, jpeg_header, open_picture, refusal
from vse_shards.rgb import Rejected as Rejected
from vse_shards.rgb import grey_bits, upright_rgb

MAX_JPEG_SIDE = 65_500  # libjpeg's limit

_REFUSALS = (ValueError, KeyError)  # raised by simplejpeg; KeyError for an unknown colour space
_SEVERAL = ("TIFF", "HEIF")  # pages are checked at opening; HEIC's first is the photo
# Changes of an image that its owner may want to know of; the summary counts them.
AFTER_END = "without the bytes after the picture's end"
POSITION = "without the place where they were taken (--keep-exif keeps it)"
WARNING = "without a fault that decoders pass over"
FEW_BITS = "as 12 bits or fewer in 16, scaled"

_FLIPS = {2, 4, 5, 7}  # Exif orientations that are flipped
_QUARTER_TURNS = {5: 1, 6: 3, 7: 3, 8: 1, 3: 2, 4: 2}  # counter-clockwise, after the flip


@dataclass(frozen=True)
class ImageOptions:
    """Conversion of images.

    Attributes:
        max_side: longest side in pixels; larger images are shrunk. None: no limit.
        quality: quality of re-encoded JPEGs, 1 to 100.
        keep_bytes: store every upright RGB JPEG byte for byte, including progressive ones and those
            larger than ``max_side``.
        keep_exif: keep the parts of a stored JPEG that say where the photo was taken.
    """

    max_side: int | None = None
    quality: int = 90
    keep_bytes: bool = False
    keep_exif: bool = False

    def recorded(self) -> dict[str, Any]:
        """Return the options as manifests list them: without one that is younger, if it is off."""
        return {k: v for k, v in asdict(self).items() if v or k != "keep_exif"}

    @classmethod
    def of(cls, build: Mapping[str, Any]) -> ImageOptions:
        """Return the options that a manifest lists."""
        return cls(
            build["max_side"], build["quality"], build["keep_bytes"], build.get("keep_exif", False)
        )


@dataclass(frozen=True)
class CheckedImage:
    """An image that passed all checks.

    Attributes:
        data: baseline JPEG.
        width: pixels.
        height: pixels.
        digest: hash of the size and of a part of the decoded pixels; equal for equal pixels and,
            rarely, for nearly equal ones. Re-encoding changes pixels, so a re-encoded image never
            has the digest of an unchanged one.
        untouched: whether the bytes are those of the source.
        changes: for the summary: what was cut, mended or assumed.
    """

    data: bytes
    width: int
    height: int
    digest: str
    untouched: bool
    changes: tuple[str, ...] = ()


def check_image(data: bytes, options: ImageOptions) -> CheckedImage:
    """Decode in full, convert and shrink where needed.

    Raises:
        Rejected: the data is damaged, not an image, animated, too small or too large.
    """
    if not data:
        raise Rejected("empty file", "0 bytes")
    if is_jpeg(data):
        return _check_jpeg(data, options)
    pixels, changes = _decode_other(data)
    pixels = _shrink(pixels, (pixels.shape[1], pixels.shape[0]), options.max_side)
    return _encode(pixels, options, changes)


def _check_jpeg(data: bytes, options: ImageOptions) -> CheckedImage:
    """Check a JPEG, without what follows its end and without faults that cost no pixel."""
    header = jpeg_header(data)
    changes = [
        *([AFTER_END] if header.end < len(data) else []),
        *([POSITION] if header.positions and not options.keep_exif else []),
    ]
    if changes:
        data = trimmed(data, header, keep_exif=options.keep_exif)
        header = jpeg_header(data)
    try:
        return _check_strictly(data, header, options, tuple(changes))
    except Rejected:
        whole = mended(data, header)
        # Pillow decodes what the strict decoder warns of.
        if whole == data or not np.array_equal(_with_pillow(data), _with_pillow(whole)):
            raise
        return _check_strictly(whole, jpeg_header(whole), options, (*changes, WARNING))


def _check_strictly(
    data: bytes, header: JpegHeader, options: ImageOptions, changes: tuple[str, ...]
) -> CheckedImage:
    if _is_fit(data, header, options):
        digest = _check_all(data, header.width, header.height)
        return CheckedImage(data, header.width, header.height, digest, not changes, changes)
    return _encode(_decode_jpeg(data, header, options.max_side), options, changes)


def _encode(
    pixels: NDArray[np.uint8], options: ImageOptions, changes: tuple[str, ...]
) -> CheckedImage:
    height, width = pixels.shape[:2]
    check_size(width, height)
    if max(height, width) > MAX_JPEG_SIDE:
        raise Rejected(
            "too large", f"{width} x {height}; a JPEG has at most {MAX_JPEG_SIDE} a side"
        )
    stored = simplejpeg.encode_jpeg(pixels, options.quality, "RGB", "420")
    # A sixteenth of the pixels: equal images have equal digests, and hashing all costs more time.
    some = pixels[::4, ::4] if min(width, height) >= 64 else pixels
    return CheckedImage(stored, width, height, _digest(some, width, height), False, changes)


def decode_strictly(data: bytes) -> NDArray[np.uint8]:
    """Decode a stored JPEG in full to RGB, (H, W, 3) uint8.

    Raises:
        Rejected: it is damaged, or beyond the limits of a build.
    """
    if is_jpeg(data):
        jpeg_header(data)
    return _strict(data, colorspace="RGB")


def _is_fit(data: bytes, header: JpegHeader, options: ImageOptions) -> bool:
    if header.components != 3 or header.orientation != 1:
        return False
    if _colorspace(data) != "YCbCr":
        return False
    if options.keep_bytes:
        return header.frame in (0, 1, 2)  # training cannot decode others, as arithmetic coding
    small_enough = options.max_side is None or max(header.width, header.height) <= options.max_side
    return header.frame == 0 and small_enough


def _colorspace(data: bytes) -> str:
    try:
        return str(simplejpeg.decode_jpeg_header(data, strict=False)[2])
    except _REFUSALS as error:
        raise refusal(error) from None


def _check_all(data: bytes, width: int, height: int) -> str:
    """Decode all entropy-coded data but only an eighth of the pixels; return the digest."""
    # An eighth of a tiny image has too few pixels to tell it from others.
    smaller = {"min_height": 1, "min_width": 1, "min_factor": 8} if min(width, height) >= 64 else {}
    return _digest(_strict(data, colorspace="RGB", **smaller), width, height)


def _digest(pixels: NDArray[np.uint8], width: int, height: int) -> str:
    digest = hashlib.sha256(f"{width} {height} ".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()[:32]


def _decode_jpeg(data: bytes, header: JpegHeader, max_side: int | None) -> NDArray[np.uint8]:
    """Decode a JPEG to upright RGB of at most ``max_side``."""
    eighths = 8
    if _colorspace(data) in ("CMYK", "YCCK"):
        _strict(data, colorspace="CMYK")
        pixels = _with_pillow(data)  # knows Adobe's inversion
    else:
        eighths = _eighths(header, max_side)
        pixels = _strict(
            data,
            colorspace="RGB",
            min_height=-(-header.height * eighths // 8),
            min_width=-(-header.width * eighths // 8),
        )
    extent = header.width * eighths / 8, header.height * eighths / 8
    return _upright(_shrink(pixels, extent, max_side), header.orientation)


def _eighths(header: JpegHeader, max_side: int | None) -> int:
    """Return the smallest scale, in eighths, that decodes a JPEG no smaller than ``max_side``.

    Libjpeg then drops high frequencies, which is as sharp as other filters and cheaper than
    shrinking pixels. At seven eighths it is not cheaper.
    """
    if max_side is None:
        return 8
    side = max(header.width, header.height)
    return next((eighths for eighths in range(1, 7) if side * eighths >= max_side * 8), 8)


def _strict(data: bytes, **options: Any) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True, **options)
    except _REFUSALS as error:
        raise refusal(error) from None
    return pixels


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an Exif orientation."""
    if orientation in _FLIPS:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, _QUARTER_TURNS.get(orientation, 0)))


def _with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB as it lies, (H, W, 3)."""
    with open_picture(data) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise many types on damaged data
            raise refusal(error) from None


def _decode_other(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode any other format with Pillow, to RGB, and return what was assumed."""
    image = open_picture(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern metadata, which is dropped
        try:
            if image.format not in _SEVERAL and getattr(image, "is_animated", False):
                raise Rejected("animated", "has several frames; captions are for one picture")
            image.load()
            check_size(*image.size)  # icons have the size of the largest that they hold
            changes = (FEW_BITS,) if (grey_bits(image) or 16) < 16 else ()
            return np.asarray(upright_rgb(image)), changes
        except Rejected:
            raise
        except Exception as error:  # many types, as above
            raise refusal(error) from None


def _shrink(
    pixels: NDArray[np.uint8], extent: tuple[float, float], max_side: int | None
) -> NDArray[np.uint8]:
    """Bring the longest side down to ``max_side`` with an antialiasing filter.

    The filter is bicubic. Lanczos takes half as much time again, and differs from it by less than
    JPEG encoding at quality 90 does (44 against 36 dB, on photos of COCO).

    Args:
        pixels: (H, W, 3).
        extent: width and height of the image within ``pixels``; an image decoded at a fraction
            ends inside its last row and column.
        max_side: longest side of the result.
    """
    scale = 1.0 if max_side is None else min(1.0, max_side / max(extent))
    size = max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, (0, 0, *extent), 3.0))
