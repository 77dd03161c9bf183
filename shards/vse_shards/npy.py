"""Arrays in ``.npy`` that others wrote: numbers, and whole."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vse_shards.plain_files import open_plain

_KINDS = "fiu"  # floating point, integers with and without sign
_WIDEST = 8  # bytes of a number


def open_npy(path: Path | str, *, any_order: bool = False) -> NDArray[Any]:
    """Map the array of a ``.npy`` file, read-only.

    Args:
        path: the file.
        any_order: return numbers in the byte order of another machine as they are.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, no whole ``.npy``, or holds anything but numbers, or
            they are in another byte order.
    """
    with open_plain(path) as file:
        dtype, shape, order = _header(file, os.fstat(file.fileno()).st_size)
        if not (any_order or dtype.isnative):
            raise ValueError(
                f"holds {dtype.str}, the byte order of another machine; save it again as "
                f'array.astype("{dtype.newbyteorder("=").str}")'
            )
        if 0 in shape:
            return np.zeros(shape, dtype)
        mapped = np.memmap(file, dtype, "r", file.tell(), shape, order)
        # By its name a file can be read without its map; numpy takes it of paths alone.
        mapped.filename = os.path.abspath(path)
        return mapped


def parse_npy(data: bytes) -> NDArray[Any]:
    """Return the array in the bytes of a ``.npy`` file, in this machine's byte order.

    It can be written to.

    Raises:
        ValueError: it is no whole ``.npy``, or holds anything but numbers.
    """
    file = io.BytesIO(data)
    dtype, shape, order = _header(file, len(data))
    found = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    flat = found.astype(dtype.newbyteorder("="))  # a copy
    return flat.reshape(shape, order=order)


def _header(file: BinaryIO, size: int) -> tuple[np.dtype[Any], tuple[int, ...], Any]:
    """Return dtype, shape and order; the file is left where the numbers begin."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # the third is of names of fields
        raise ValueError(f"is of .npy's version {version[0]}.{version[1]}; save plain numbers")
    try:
        shape, fortran, dtype = readers[version](file)
    except ValueError:
        raise
    except Exception:  # numpy reads the header as Python, and fails in any part of its parser
        raise ValueError("its header cannot be read") from None
    if dtype.kind not in _KINDS or dtype.itemsize > _WIDEST:
        raise ValueError(f"holds {str(dtype)[:40]}, not numbers of at most 64 bits")
    needed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(shape) > 32 or needed > size - file.tell():
        raise ValueError(
            f"its header says {needed:,} bytes of numbers, shape {str(shape)[:40]}, and "
            f"{size - file.tell():,} follow"
        )
    return dtype, shape, "F" if fortran else "C"
