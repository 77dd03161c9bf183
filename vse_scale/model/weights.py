"""Weight files: read whole, fitted exactly, or refused with every key that disagrees."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vse_scale.errors import ModelError
from vse_shards.plain_files import open_plain

# The published code's Sequentials: what it calls base is all but the last stage, the top.
_DETECTOR_LAYERS = {
    "base": {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"},
    "top": {"0": "layer4"},
}

_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip
_LONGEST = 160  # characters of a key, with its shapes
_LISTED = 20  # keys that an error message names before it counts the rest


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``path``: safetensors by its suffix, else what ``torch.save`` wrote.

    The published detector's file, ``{"base": ..., "top": ...}`` with the layers of a ResNet by
    number, is given torchvision's names.

    Raises:
        ModelError: the file is missing or damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return check_tensors(load_file(path), str(path))
        loaded = load_pickled(path)
        if isinstance(loaded, Mapping) and loaded.keys() == _DETECTOR_LAYERS.keys():
            loaded = _torchvision_names(loaded)
    except ModelError:
        raise
    except Exception as error:  # a damaged file fails in any part of the readers
        raise ModelError(f"{path}: cannot be read as weights ({why_damaged(error)})") from error
    return check_tensors(loaded, str(path))


def load_pickled(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Return the content of a file of ``torch.save``: tensors, plain values and ``allowed`` types.

    Unpickling any other class could run anything.

    Raises:
        ModelError: it takes more memory than it has bytes.
        Exception: it is damaged; of any type, as it fails in any part of the reader.
    """
    _check_packing(path)
    with torch.serialization.safe_globals(list(allowed)):
        return torch.load(path, map_location="cpu", weights_only=True)


def why_damaged(error: Exception) -> str:
    """Return the first line of what a reader says, without torch's advice to run a file's code."""
    said = (str(error).strip() or type(error).__name__).split("\n")[0]
    if "weights_only" in said:
        return "it is no file of torch.save, or holds more than tensors and plain values"
    return said[:200]


def open_tensors(path: Path) -> Any:
    """Open a safetensors file, whose tensors are read by name.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or no regular file.
    """
    open_plain(path).close()
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_packing(path: Path) -> None:
    """Refuse a file of ``torch.save`` that takes more memory than it has bytes.

    ``torch.save`` stores tensors as they are; a compressed archive may hold a thousand times its
    size.

    Raises:
        ModelError: it is such a file.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    # A RuntimeError is zipfile's, of archives in parts and of newer versions of the format.
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be read as weights ({error})") from error
    size, stored = sum(one.file_size for one in entries), path.stat().st_size
    # Entries may be compressed, or several of them lie over the same bytes.
    if size > stored or any(one.compress_type != zipfile.ZIP_STORED for one in entries):
        raise ModelError(
            f"{path}: is a compressed archive of {size:,} bytes in {stored:,}, and weights are "
            "stored as they are; save it again with torch.save"
        )


def check_tensors(loaded: Any, origin: str) -> dict[str, Tensor]:
    """Return ``loaded``, a mapping of plain tensors by name.

    Raises:
        ModelError: it is no such mapping, or a tensor is sparse, quantized, complex or without
            values.
    """
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise ModelError(f"{origin}: holds {type(loaded).__name__}, not tensors by name")
    for name, value in loaded.items():
        if fault := _oddity(value):
            raise ModelError(f"{origin}: {name[:80]} {fault}; give plain tensors")
    return dict(loaded)


def _oddity(value: Tensor) -> str | None:
    """Return the first fault of a tensor that cannot be a weight, None of a plain one."""
    if value.layout is not torch.strided or value.is_nested:
        return "is not dense"
    if value.is_quantized:
        return "is quantized"
    if value.is_complex():
        return "is complex"
    if value.is_meta:
        return "has no values"
    if value.dtype not in _DTYPES:
        return f"is {value.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "repeats its values, of which few are stored"
    return None


def _torchvision_names(loaded: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    for half, layers in _DETECTOR_LAYERS.items():
        for name, value in dict(loaded[half]).items():
            number, dot, rest = str(name).partition(".")
            layer = layers.get(number, f"{half}.{number}")
            renamed[f"{layer}{dot}{rest}"] = value
    return renamed


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    origin: str,
    *,
    surplus: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Copy ``tensors`` into ``module``, which must have these names and shapes and no others.

    Args:
        module: receives the values.
        tensors: values by state-dict name.
        origin: what an error message calls the source of ``tensors``.
        surplus: patterns of names that may be in ``tensors`` alone.
        optional: patterns of names that may be in ``module`` alone; these keep their values.

    Raises:
        ModelError: keys are missing or surplus, shapes differ, or values are not finite; ``module``
            is left as it was.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in tensors and not _matches(k, optional)]
    unknown = [k for k in tensors if k not in own and not _matches(k, surplus)]
    differing = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    complain(origin, missing=missing, surplus=unknown, differing=differing)
    for name in own.keys() & tensors.keys():
        if not tensors[name].isfinite().all():
            raise ModelError(f"{origin}: {name} holds values that are not finite; it is damaged")
    with torch.no_grad():
        for name, value in own.items():
            if name in tensors:
                value.copy_(tensors[name])


def complain(
    origin: str, *, missing: Sequence[str], surplus: Sequence[str], differing: Sequence[str]
) -> None:
    """Raise ModelError, in the name of ``origin``, that lists keys which do not fit, if any."""
    kinds = {"missing": missing, "surplus": surplus, "of another shape": differing}
    complaints = [
        f"{len(keys)} {kind}: {', '.join(key[:_LONGEST] for key in keys[:_LISTED])}"
        + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
        for kind, keys in kinds.items()
        if keys
    ]
    if complaints:
        raise ModelError(f"{origin}: does not fit this model; {'; '.join(complaints)}")


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)
