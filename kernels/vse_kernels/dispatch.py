"""Choice between a Triton implementation and the torch one."""

from __future__ import annotations

import importlib.util
import os
import warnings

import torch
from torch import Tensor

# Found, not imported: triton decides at its import whether it interprets.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_OLDEST_CAPABILITY = 8  # sm_80: the first with bfloat16 and a minimum that keeps NaN
_warned: set[str] = set()


def triton_obstacle(tensor: Tensor) -> str | None:
    """Return the reason why Triton kernels cannot run on this tensor's device, or None.

    CPU tensors need Triton's interpreter: TRITON_INTERPRET=1, set before triton is imported.
    """
    if not _HAS_TRITON:
        return "triton is not installed"
    if tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if tensor.device.type != "cuda":
        return f"the tensors are on {tensor.device.type}, not on cuda"
    major = torch.cuda.get_device_properties(tensor.device).major
    if major < _OLDEST_CAPABILITY:
        return f"the device has compute capability {major}.x, below {_OLDEST_CAPABILITY}.0"
    return None


def use_triton(name: str, impl: str, tensor: Tensor, limit: str | None) -> bool:
    """Return whether the Triton implementation of a kernel runs.

    Args:
        name: the public function, for messages.
        impl: "auto", "torch" or "triton", from the caller.
        tensor: one of the operands.
        limit: property of the operands that the Triton kernel does not support, or None.

    Raises:
        ValueError: `impl` is unknown, or is "triton" and Triton cannot run.
    """
    if impl not in ("auto", "torch", "triton"):
        raise ValueError(f'impl is "{impl}"; {name} takes "auto", "torch" or "triton"')
    if impl == "torch" or (impl == "auto" and tensor.device.type != "cuda"):
        return False
    obstacle = triton_obstacle(tensor) or limit
    if obstacle is None:
        return True
    if impl == "triton":
        raise ValueError(f'impl is "triton", but {name} cannot run it here: {obstacle}')
    message = f"{name} falls back to torch: {obstacle}"
    if message not in _warned and not torch.compiler.is_compiling():
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return False
