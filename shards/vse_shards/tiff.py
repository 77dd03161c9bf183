"""TIFF directories, read without decoding (TIFF 6.0, section 2, and BigTIFF)."""

from __future__ import annotations

import struct

from vse_shards.rgb import Rejected

MAX_PAGES = 1_000  # counted, for the message
MAX_ENTRIES = 4_096  # of one directory; cameras write some dozens
_KIND_OF_PAGE = 254  # NewSubfileType
_SMALLER, _MASK = 1, 4  # bits: a smaller version of another page, a mask of it
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BIG_SIZES = {16: 8, 17: 8, 18: 8}


def check_tiff(data: bytes) -> bytes:
    """Check that a TIFF is of one page, beside smaller versions and masks of it.

    Returns:
        The data.

    Raises:
        Rejected: it has several pages, or its directories are damaged or endless.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset, count = (order + "Q", order + "Q") if big else (order + "I", order + "H")
    entry = struct.Struct(order + ("HHQ" if big else "HHI"))
    try:
        (place,) = struct.unpack_from(offset, data, 8 if big else 4)
        pages, seen = 0, set[int]()
        while place:
            if place in seen:
                raise Rejected("damaged", "its directories form a ring")
            seen.add(place)
            (entries,) = struct.unpack_from(count, data, place)
            if entries > MAX_ENTRIES:
                raise Rejected("too large", f"a directory of {entries:,}, limit {MAX_ENTRIES:,}")
            place += struct.calcsize(count)
            width = entry.size + struct.calcsize(offset)
            pages += _is_page(data, entry, place, entries, width) or not pages
            (place,) = struct.unpack_from(offset, data, place + entries * width)
            if len(seen) > MAX_PAGES:
                raise Rejected("several pages", f"over {MAX_PAGES:,}; captions are for one picture")
    except struct.error:
        raise Rejected("truncated", f"TIFF ends after {len(data)} bytes") from None
    if pages > 1:
        raise Rejected("several pages", f"{pages} pages; captions are for one picture")
    return data


def _is_page(data: bytes, entry: struct.Struct, place: int, entries: int, width: int) -> bool:
    """Return whether a directory is a picture of its own.

    Raises:
        Rejected: its values together are larger than the file.
    """
    total, is_page = 0, True
    for number in range(entries):
        tag, kind, count = entry.unpack_from(data, place + number * width)
        total += count * (_SIZES.get(kind) or _BIG_SIZES.get(kind, 0))
        if tag == _KIND_OF_PAGE:
            at = place + number * width + entry.size
            value = data[at : at + (2 if kind == 3 else 4)]
            is_page = not int.from_bytes(
                value, "little" if entry.format.startswith("<") else "big"
            ) & (_SMALLER | _MASK)
    if total > len(data) + (1 << 16):
        raise Rejected("damaged", f"values of {total:,} bytes in a TIFF of {len(data):,}")
    return is_page
