"""Argument checks without host synchronisation, and the switch for checks that need one."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def require_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless `tensor` has one of the `allowed` dtypes."""
    if tensor.dtype not in allowed:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name} is {kind}; it must be one of {_names(allowed)}")


def require_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...], why: str) -> None:
    """Raise ValueError unless `tensor` has `shape`; None in it allows any size."""
    agrees = tensor.dim() == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not agrees:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {why} needs ({wanted})")


def require_same_device(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are on the device of the first."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, {first} on {reference.device}")


def values_are_checked(tensor: Tensor) -> bool:
    """Return whether to check a tensor's values: always on CPU, elsewhere if VSE_KERNELS_CHECK=1.

    On a GPU the check is a host synchronisation. Fake tensors, and those of a traced graph, have no
    values.
    """
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor):
        return False
    return tensor.device.type == "cpu" or os.environ.get("VSE_KERNELS_CHECK") == "1"


def require_range(name: str, tensor: Tensor, low: int, high: int, why: str) -> None:
    """Raise ValueError if an element lies outside [low, high], where values are checked."""
    if tensor.numel() == 0 or not values_are_checked(tensor):
        return
    smallest, largest = (int(value) for value in tensor.aminmax())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        raise ValueError(f"{name} holds {wrong}; {why} allows {low} to {high}")
