"""JPEG markers, read without decoding (ITU-T T.81, annex B; Exif 2.3 orientation)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # TEM and RSTn carry no length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOFn, without DHT, JPG and DAC
_SCAN = 0xDA
_PROGRESSIVE = 2
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class JpegHeader:
    """The frame of a JPEG.

    Attributes:
        width: pixels as stored, before the orientation is applied.
        height: pixels.
        components: 1 grey, 3 colour, 4 CMYK.
        frame: number n of the SOFn marker: 0 baseline, 1 extended, 2 progressive.
        scans: number of start-of-scan markers, including those of an embedded thumbnail; counted
            only in progressive JPEGs, which may have any number.
        orientation: Exif orientation, 1 to 8; 1 if it is missing or invalid.
    """

    width: int
    height: int
    components: int
    frame: int
    scans: int
    orientation: int


def is_jpeg(data: bytes) -> bool:
    """Return whether the data starts with a JPEG marker."""
    return data[:3] == b"\xff\xd8\xff"


def read_header(data: bytes) -> JpegHeader:
    """Walk the markers up to the first scan.

    Raises:
        ValueError: the data ends, or lacks a marker where the format requires one.
    """
    orientation, frame = 1, None
    for marker, segment in _segments(data):
        if marker in _FRAMES and frame is None and len(segment) >= 6:
            _, height, width, components = struct.unpack_from(">BHHB", segment)
            frame = (marker - 0xC0, height, width, components)
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0":
            orientation = _orientation(segment[6:])
    if frame is None:
        raise ValueError("has no frame header")
    number, height, width, components = frame
    return JpegHeader(
        width=width,
        height=height,
        components=components,
        frame=number,
        scans=data.count(b"\xff\xda") if number == _PROGRESSIVE else 1,
        orientation=orientation,
    )


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and payload of each segment before the first scan."""
    position = 2
    while True:
        while data[position : position + 2] == b"\xff\xff":
            position += 1  # fill bytes
        if len(data) < position + 4:
            raise ValueError(f"ends after {len(data)} bytes, before the first scan")
        if data[position] != 0xFF:
            raise ValueError(f"no marker at byte {position}")
        marker = data[position + 1]
        position += 2
        if marker in _STANDALONE:
            continue
        if marker == _SCAN:
            return
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, data[position + 2 : position + length]
        position += length


def _orientation(tiff: bytes) -> int:
    """Read the orientation from the first directory of a TIFF structure; 1 if it has none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
