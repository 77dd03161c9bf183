"""Strict decoding of images, and their conversion to upright RGB JPEGs.

A JPEG is *fit* if training can read it unchanged: baseline, three components, upright. A fit JPEG
is stored byte for byte. Every other image that decodes is converted: Exif rotation is applied, and
grey, CMYK, palette, 16-bit and transparent images (over white) become RGB. The rest is rejected.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vse_shards.jpeg import JpegHeader, is_jpeg, read_header
from vse_shards.rgb import Rejected as Rejected
from vse_shards.rgb import to_rgb

MIN_SIDE = 8  # pixels; a crop of 0.6 of the side must not be empty
MAX_PIXELS = 100_000_000  # 300 MB decoded
MAX_JPEG_SIDE = 65_500  # libjpeg's limit
MAX_SCANS = 200  # a photo has about ten; thousands of them exhaust the decoder

_REFUSALS = (ValueError, KeyError)  # raised by simplejpeg; KeyError for an unknown colour space
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
)
"""Suffixes, in lower case, of the files that `check_image` decodes."""
_PNG = b"\x89PNG\r\n\x1a\n"
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
    """

    max_side: int | None = None
    quality: int = 90
    keep_bytes: bool = False


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
    """

    data: bytes
    width: int
    height: int
    digest: str
    untouched: bool


def check_image(data: bytes, options: ImageOptions) -> CheckedImage:
    """Decode in full, convert and shrink where needed.

    Raises:
        Rejected: the data is damaged, not an image, animated, too small or too large.
    """
    if not data:
        raise Rejected("empty file", "0 bytes")
    if is_jpeg(data):
        header = _jpeg_header(data)
        if _is_fit(data, header, options):
            digest = _check_all(data, header.width, header.height)
            return CheckedImage(data, header.width, header.height, digest, untouched=True)
        pixels = _decode_jpeg(data, header, options.max_side)
    else:
        pixels = _decode_other(data)
        pixels = _shrink(pixels, (pixels.shape[1], pixels.shape[0]), options.max_side)
    height, width = pixels.shape[:2]
    _check_size(width, height)
    if max(height, width) > MAX_JPEG_SIDE:
        raise Rejected(
            "too large", f"{width} x {height}; a JPEG has at most {MAX_JPEG_SIDE} a side"
        )
    stored = simplejpeg.encode_jpeg(pixels, options.quality, "RGB", "420")
    # A sixteenth of the pixels: equal images have equal digests, and hashing all costs more time.
    some = pixels[::4, ::4] if min(width, height) >= 64 else pixels
    return CheckedImage(stored, width, height, _digest(some, width, height), untouched=False)


def decode_strictly(data: bytes) -> NDArray[np.uint8]:
    """Decode a stored JPEG in full to RGB, (H, W, 3) uint8.

    Raises:
        Rejected: it is damaged.
    """
    return _strict(data, colorspace="RGB")


def _jpeg_header(data: bytes) -> JpegHeader:
    try:
        header = read_header(data)
    except ValueError as error:
        raise Rejected("truncated" if "ends" in str(error) else "damaged", str(error)) from None
    _check_size(header.width, header.height)
    if header.scans > MAX_SCANS:
        raise Rejected("too large", f"{header.scans} scans, limit {MAX_SCANS}")
    return header


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise Rejected("too small", f"{width} x {height} pixels, at least {MIN_SIDE} a side")
    if width * height > MAX_PIXELS:
        raise Rejected("too large", f"{width} x {height} pixels, limit {MAX_PIXELS:,} in all")


def _is_fit(data: bytes, header: JpegHeader, options: ImageOptions) -> bool:
    if header.components != 3 or header.orientation != 1:
        return False
    if _colorspace(data) != "YCbCr":
        return False
    if options.keep_bytes:
        return True
    small_enough = options.max_side is None or max(header.width, header.height) <= options.max_side
    return header.frame == 0 and small_enough


def _colorspace(data: bytes) -> str:
    try:
        return str(simplejpeg.decode_jpeg_header(data, strict=False)[2])
    except _REFUSALS as error:
        raise _refusal(error) from None


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
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:  # knows Adobe's inversion
            pixels = np.asarray(image.convert("RGB"))
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
        raise _refusal(error) from None
    return pixels


def _refusal(error: Exception) -> Rejected:
    """Classify an error message of libjpeg or simplejpeg."""
    text = str(error).strip()
    return Rejected("truncated" if "premature end" in text.lower() else "damaged", text)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an Exif orientation."""
    if orientation in _FLIPS:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, _QUARTER_TURNS.get(orientation, 0)))


def _decode_other(data: bytes) -> NDArray[np.uint8]:
    """Decode PNG, WebP, GIF, BMP, TIFF or PPM with Pillow, to RGB."""
    if data.startswith(_PNG):
        _check_png(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern metadata, which is dropped
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise Rejected("too large", str(error)) from None
        except Exception:  # Pillow's parsers raise many types on damaged headers
            raise Rejected("not an image", f"{len(data):,} bytes of no known format") from None
        try:
            if getattr(image, "is_animated", False):
                frames = getattr(image, "n_frames", 2)
                raise Rejected("animated", f"{frames} frames; captions are for one picture")
            _check_size(*image.size)
            image.load()
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
        except Rejected:
            raise
        except Exception as error:  # many types, as above
            truncated = "truncated" in str(error)
            raise Rejected("truncated" if truncated else "damaged", str(error)) from None


def _check_png(data: bytes) -> None:
    """Check the checksum of every chunk; Pillow skips those of pixel data."""
    position = len(_PNG)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise Rejected("damaged", f"check sum of PNG chunk {kind!r} is wrong")
        if kind == b"IEND":
            return
        position = end + 4
    raise Rejected("truncated", f"PNG ends after {len(data)} bytes without its last chunk")


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
