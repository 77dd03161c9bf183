"""Opening of pictures that no one vouches for: by content, in safe formats, within limits.

Every place that opens one goes through `open_picture`, with Pillow alone; the build decodes JPEGs
itself. Formats that start programs (EPS), or hold no single picture, are never tried.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable

from PIL import Image

from vse_shards.jpeg import MAX_BETWEEN, MAX_SCANS, JpegHeader, read_header
from vse_shards.rgb import Rejected
from vse_shards.tiff import check_tiff

MAX_FILE_BYTES = 1 << 29  # a file of more than 512 MB is not a photo
MIN_SIDE = 8  # pixels; a crop of 0.6 of the side must not be empty
MAX_PIXELS = 100_000_000  # 300 MB decoded
MAX_WORK = 5_000_000_000  # pixels times scans: some seconds
_ARITHMETIC = 10  # times the work of Huffman coding
_FILL = b"\xff" * MAX_BETWEEN
_MAX_CHUNKS = 100_000  # of a PNG; libpng's own are of 8 kB

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpx", ".jpf", ".jxl"),
        *(".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".tga"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif"),
    }
)
"""Suffixes, in lower case, of files that are taken for images; their content decides."""


# Pillow's module of each format; a plugin's module, the name that it gives the format, its package.
_MODULES = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "DIB": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "AVIF": "Avif",
    "JPEG2000": "Jpeg2K",
    "ICO": "Ico",
    "PCX": "Pcx",
    "SGI": "Sgi",
    "TGA": "Tga",
}
_PLUGINS = {
    "HEIC": ("pillow_heif", "HEIF", "pillow-heif"),
    "JXL": ("pillow_jxl", "JXL", "pillow-jxl-plugin"),
}

# What data starts with. The order matters where a start is short.
_STARTS: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (kind, re.compile(start, re.DOTALL | re.IGNORECASE if kind == "HTML or XML" else re.DOTALL))
    for kind, start in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("WEBP", rb"RIFF....WEBP"),
        ("GIF", rb"GIF8[79]a"),
        ("TIFF", rb"II[*+]\0|MM\0[*+]"),
        ("BMP", rb"BM"),
        ("DIB", rb"\x28\0\0\0"),
        ("PPM", rb"P[1-6fF]\s"),
        ("HEIC", rb".{4}ftyp(hei|hev)"),
        ("AVIF", rb".{4}ftypavi[fs]"),
        ("HEIC", rb".{4}ftypm[is]f1(?!.{0,64}avif)"),
        ("AVIF", rb".{4}ftypm[is]f1"),
        ("JPEG2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
        ("JXL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
        ("ICO", rb"\0\0\x01\0"),
        ("SGI", rb"\x01\xda[\0\x01][\x01\x02]"),
        ("PCX", rb"\x0a[\0\x02\x03\x05]\x01[\x01\x02\x04\x08]"),
        ("a video", rb".{4}ftyp"),
        ("a Photoshop file", rb"8BPS"),
        ("PostScript", rb"%!PS|\xc5\xd0\xd3\xc6"),
        ("PDF", rb"%PDF"),
        ("HTML or XML", rb"(\xef\xbb\xbf)?\s*<"),
        ("gzip", rb"\x1f\x8b"),
        ("a zip archive", rb"PK\x03\x04"),
        ("a pointer of Git LFS", rb"version https://git-lfs"),
        ("zero bytes alone", rb"\0+\Z"),
        ("text", rb"[\t\r\n\x20-\x7e]{16}|[\t\r\n\x20-\x7e]+\Z"),
    )
)


def open_picture(data: bytes) -> Image.Image:
    """Open a picture within the limits on size, scans, pages and chunks; its pixels come later.

    Args:
        data: a file's content.

    Raises:
        Rejected: it is in no format that can be read, too large, or its header is damaged.
    """
    kind = picture_kind(data)
    if kind not in _MODULES and kind not in _PLUGINS:
        raise Rejected("not an image", f"is {kind}" if kind else "no known format of pictures")
    if kind == "JPEG":
        header = jpeg_header(data)
        if _FILL in data[header.scan : header.end]:
            raise Rejected("damaged", f"over {MAX_BETWEEN:,} fill bytes in a scan")
    elif kind in _GUARDS:
        data = _GUARDS[kind](data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern metadata, which is dropped
        image = _opened(data, kind)
    check_size(*image.size)
    return image


def picture_kind(data: bytes) -> str:
    """Return the format of a file's content, or words for what it is instead, "" if unknown."""
    if data[-18:-1] == b"TRUEVISION-XFILE.":  # TGA has no mark at its start
        return "TGA"
    start = data[:256]
    return next((kind for kind, pattern in _STARTS if pattern.match(start)), "")


def jpeg_header(data: bytes) -> JpegHeader:
    """Return the header of a JPEG that a decoder may be given.

    Raises:
        Rejected: it has too many pixels, scans or markers, or less data than its size needs.
    """
    try:
        header = read_header(data)
    except ValueError as error:
        raise Rejected("truncated" if "ends" in str(error) else "damaged", str(error)) from None
    check_size(header.width, header.height)
    if header.scans > MAX_SCANS:
        raise Rejected("too large", f"over {MAX_SCANS} scans, the limit")
    pixels = header.width * header.height
    arithmetic = header.frame >= 9
    if pixels * header.scans * (_ARITHMETIC if arithmetic else 1) > MAX_WORK:
        kind = "arithmetic coding and " if arithmetic else ""
        raise Rejected(
            "too large", f"{header.width} x {header.height} pixels in {kind}{header.scans} scans"
        )
    # A block of 64 pixels takes two bits at least, so a header that lies is seen before memory
    # is taken for its pixels.
    least = -(-header.width // 8) * -(-header.height // 8) // 4
    if header.frame in (0, 1) and len(data) - header.scan < least:
        size = f"{header.width} x {header.height} pixels"
        raise Rejected("truncated", f"{size} take {least:,} bytes or more, it has {len(data):,}")
    return header


def check_size(width: int, height: int) -> None:
    """Check a picture's size.

    Raises:
        Rejected: a side is too small, or there are too many pixels.
    """
    if min(width, height) < MIN_SIDE:
        raise Rejected("too small", f"{width} x {height} pixels, at least {MIN_SIDE} a side")
    if width * height > MAX_PIXELS:
        raise Rejected("too large", f"{width} x {height} pixels, limit {MAX_PIXELS:,} in all")


def refusal(error: BaseException) -> Rejected:
    """Classify what a decoder says."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Rejected("too large", text)
    ended = "truncated" in text or "premature end" in text.lower() or "reached end" in text.lower()
    return Rejected("truncated" if ended else "damaged", text[:200])


def _opened(data: bytes, kind: str) -> Image.Image:
    module, name, package = _PLUGINS.get(kind, (f"PIL.{_MODULES.get(kind)}ImagePlugin", kind, ""))
    try:
        plugin = importlib.import_module(module)
        if kind == "HEIC":
            plugin.register_heif_opener()
    except ImportError:
        raise Rejected("no decoder", f"is {kind}: pip install {package}") from None
    # Not Image.open, which tries the formats in turn and keeps their reasons to itself.
    factory, accept = Image.OPEN[name]
    try:
        accepted = accept is None or accept(data[:16])
        if isinstance(accepted, str):  # such as AVIF where Pillow was built without
            raise Rejected("no decoder", f"is {kind}: {accepted}")
        return factory(io.BytesIO(data), "")
    except Rejected:
        raise
    except Exception as error:  # Pillow's parsers raise many types on damaged headers
        raise refusal(error) from None


def _check_png(data: bytes) -> bytes:
    """Check the checksum of every chunk; Pillow skips those of pixel data.

    Returns:
        The PNG without profiles and texts, which Pillow refuses above a megabyte.
    """
    kept, position, start = [], 0, 8
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data.ljust(start + 8, b"\0"), start)
        stop = start + length + 12
        if stop > len(data):
            break
        if zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            raise Rejected("damaged", f"check sum of PNG chunk {kind!r} is wrong")
        # XMP may hold the orientation.
        text = kind in (b"tEXt", b"zTXt", b"iTXt") and data[start + 8 : start + 26] != _XMP_KEYWORD
        if text or kind == b"iCCP" or (kind == b"iTXt" and length > _MAX_TEXT):
            kept.append(data[position:start])
            position = stop
        if kind == b"IEND":
            return b"".join([*kept, data[position:stop]]) if kept else data
        start = stop
    else:
        raise Rejected("too large", f"over {_MAX_CHUNKS:,} chunks, the limit")
    raise Rejected("truncated", f"PNG ends after {len(data)} bytes without its last chunk")


_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
_MAX_TEXT = 1 << 20


def _check_webp(data: bytes) -> bytes:
    """Check the size before Pillow takes memory for two such pictures."""
    kind, body = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
    else:
        raise Rejected("damaged", "WebP without pixels")
    check_size(width, height)
    return data


def _check_ico(data: bytes) -> bytes:
    """Check the sizes of the PNGs within an icon, which Pillow takes for granted."""
    for found in re.finditer(rb"IHDR(.{8})", data, re.DOTALL):
        width, height = struct.unpack(">II", found[1])
        if width * height > MAX_PIXELS:
            raise Rejected("too large", f"{width} x {height} pixels, limit {MAX_PIXELS:,} in all")
    return data


_GUARDS: dict[str, Callable[[bytes], bytes]] = {
    "PNG": _check_png,
    "WEBP": _check_webp,
    "ICO": _check_ico,
    "TIFF": check_tiff,
}
