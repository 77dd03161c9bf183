"""Region features of one image, out of the files that detectors and their users write."""

from __future__ import annotations

import base64
import io
import re
import zipfile
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vse_shards.errors import SourceError
from vse_shards.notes import shown
from vse_shards.npy import open_npy, parse_npy
from vse_shards.plain_files import open_plain
from vse_shards.rgb import Rejected
from vse_shards.sources import RegionsAt

Features = NDArray[np.floating[Any]]

TSV = re.compile(r".*\.tsv(\.\d+)?")
HDF = (".h5", ".hdf5")
WHOLE = -1  # row of a file that holds the regions of one image
MAX_LINE = 1 << 26  # bytes of a .tsv's line: 100 regions of 2,048 channels take 1 MB
_MAX_ARRAY = 1 << 28  # bytes of one image's regions
_DAMAGED = (zipfile.BadZipFile, zlib.error)
_NAMES = ("x", "feat", "features", "feature", "att_feats", "arr_0")  # of the array in a .npz


def read_regions(at: RegionsAt) -> bytes:
    """Return the regions of one image as the bytes of a ``.npy`` file, (regions, channels).

    Raises:
        Rejected: they do not exist, or are damaged or not finite.
        SourceError: the file as a whole cannot be read.
    """
    name = at.path.lower()
    if TSV.fullmatch(name):
        values = _from_tsv(at)
    elif name.endswith(".npz"):
        values = _from_npz(at.path)
    elif name.endswith(HDF):
        values = _from_hdf(at)
    else:
        values = _from_npy(at)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise Rejected("damaged", f"regions are {values.dtype} of shape {values.shape}")
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if not np.isfinite(values).all():
        raise Rejected("damaged", "region features that are not finite")
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def load_regions(data: bytes) -> Features:
    """Read the ``.npy`` member of a sample, (regions, channels).

    Raises:
        ValueError: the data is not such an array.
    """
    values: Features = parse_npy(data)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(
            f"region features are {values.dtype} of shape {values.shape}, not floating-point "
            "(regions, channels)"
        )
    return values


def forget_regions() -> None:
    """Close the region files that are kept open: another file may be in their place by now."""
    for kept in (_region_file, hdf_keys, open_hdf):
        kept.cache_clear()


def _from_npy(at: RegionsAt) -> Features:
    array = _region_file(at.path, 2 if at.row == WHOLE else 3)
    if at.row == WHOLE:
        return array
    if at.row >= len(array):
        raise Rejected("missing regions", f"row {at.row} of a file of {len(array)}")
    values: Features = array[at.row]
    return values


@lru_cache(maxsize=8)
def _region_file(path: str, dimensions: int) -> NDArray[Any]:
    """Map a region file into memory; it may have tens of gigabytes."""
    try:
        array = open_npy(path, any_order=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as .npy: {error}") from error
    if array.ndim != dimensions or array.dtype.kind != "f":
        wanted = "(images, regions, channels)" if dimensions == 3 else "(regions, channels)"
        raise SourceError(
            f"{path}: is {array.dtype} of shape {array.shape}, not floating-point {wanted}"
        )
    return array


def _from_tsv(at: RegionsAt) -> Features:
    """Decode the line that begins at byte ``row``: its last cells are number, boxes, features."""
    with open_plain(at.path) as file:
        file.seek(at.row)
        cells = file.readline(MAX_LINE).rstrip(b"\r\n").split(b"\t")
    try:
        regions = int(cells[-3])
        values = np.frombuffer(base64.b64decode(cells[-1], validate=True), "<f4")
        return values.reshape(regions, -1)
    except (ValueError, IndexError):
        raise Rejected("damaged", "its line of the .tsv is no base64 of its regions") from None


def _from_npz(path: str) -> Features:
    try:
        with zipfile.ZipFile(path) as archive:
            size = max((entry.file_size for entry in archive.infolist()), default=0)
            if size > _MAX_ARRAY:
                raise Rejected("too large", f"{size:,} bytes of regions, limit {_MAX_ARRAY:,}")
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            name = next((name for name in _NAMES if name in held), None)
            if name is None:
                found = shown(", ".join(held))
                raise Rejected("missing regions", f"its arrays are {found}, none of {_NAMES}")
            values: Features = parse_npy(archive.read(f"{name}.npy"))
    # The others are zipfile's and zlib's, of archives that are damaged, in parts or encrypted.
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, *_DAMAGED) as error:
        raise Rejected("damaged", f"cannot be read as .npz: {error}") from None
    # A grid of cells, (14, 14, channels), is as good as regions.
    return values.reshape(-1, values.shape[-1]) if values.ndim == 3 else values


def _from_hdf(at: RegionsAt) -> Features:
    keys = hdf_keys(at.path)
    stored = open_hdf(at.path)[keys[at.row][1]]
    if stored.nbytes > _MAX_ARRAY:  # as its header says: a file of few bytes may say any size
        raise Rejected("too large", f"{stored.nbytes:,} bytes of regions, limit {_MAX_ARRAY:,}")
    values: Features = np.asarray(stored)
    return values


@lru_cache(maxsize=8)
def open_hdf(path: str) -> Any:
    """Open an HDF5 file.

    Raises:
        SourceError: h5py is not installed, or the file cannot be read.
    """
    try:
        import h5py
    except ImportError:
        raise SourceError(f"{path}: is HDF5: pip install h5py") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read as HDF5: {error}") from None


@lru_cache(maxsize=8)
def hdf_keys(path: str) -> list[tuple[str, str]]:
    """Return the image id and the name of each array of regions in an HDF5 file, in order.

    Known are ``{id}_features`` (M2 transformer), ``{id}/features`` and ``{id}``.
    """
    found = []
    for name, entry in open_hdf(path).items():
        if hasattr(entry, "keys"):
            inner = next((one for one in _NAMES if one in entry), None)
            found += [(name, f"{name}/{inner}")] if inner else []
        elif len(entry.shape) == 2 and not name.endswith(("_boxes", "_cls_prob")):
            found.append((name.removesuffix("_features"), name))
    return found
