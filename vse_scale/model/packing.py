"""Whether rows may be packed, which needs their lengths' values at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def without_values(tensor: Tensor) -> bool:
    """Return whether ``tensor`` has a shape alone."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def is_eager_cpu(lengths: Tensor) -> bool:
    """Return whether ``lengths`` can be read without waiting for a device, or breaking a graph."""
    eager = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    return eager and not torch.is_autocast_enabled("cpu") and not without_values(lengths)
