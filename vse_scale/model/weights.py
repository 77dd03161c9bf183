"""Weight files: read whole, fitted exactly, or refused with every key that disagrees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vse_scale.errors import ModelError

# The published code's Sequentials: what it calls base is all but the last stage, the top.
_DETECTOR_LAYERS = {
    "base": {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"},
    "top": {"0": "layer4"},
}

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
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: cannot be read as weights ({reason})") from error
    if isinstance(loaded, Mapping) and loaded.keys() == _DETECTOR_LAYERS.keys():
        loaded = _torchvision_names(loaded)
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"{path}: holds {type(loaded).__name__}, not tensors by name")
    return dict(loaded)


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
        ModelError: keys are missing or surplus, or shapes differ; ``module`` is left as it was.
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
        f"{len(keys)} {kind}: {', '.join(keys[:_LISTED])}"
        + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
        for kind, keys in kinds.items()
        if keys
    ]
    if complaints:
        raise ModelError(f"{origin}: does not fit this model; {'; '.join(complaints)}")


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)
