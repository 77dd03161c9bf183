"""A run's tensors on disk: one file, whatever the number of ranks and the ZeRO stage.

DeepSpeed's own checkpoints belong to the layout that wrote them; its conversion to another takes a
second tool, and under stage 3 mixes up learning rates and step counts. A retrieval model's state is
a few gigabytes, so it is gathered and kept whole. One rank writes and reads the file: the folder of
a run need not be visible to other machines.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vse_scale.errors import CheckpointError
from vse_scale.model.weights import open_tensors
from vse_scale.world.processes import World


class SharedTensors:
    """The tensors of a safetensors file, read by the main rank and handed to all.

    Args:
        path: of the file; only the main rank looks at it.
        world: the ranks, all of which ask for the same tensors in the same order.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, path: Path, world: World) -> None:
        self._path = path
        self._world = world
        if world.main:
            try:
                self._file = open_tensors(path)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error})") from error

    def get(self, name: str, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the tensor ``name`` on this rank's device.

        Raises:
            CheckpointError: the file lacks it, or holds one of another shape or dtype.
        """
        device = self._world.device
        if self._world.main:
            try:
                value: Tensor = self._file.get_tensor(name).to(device)
            except SafetensorError as error:
                raise CheckpointError(f"{self._path}: {name} is missing ({error})") from error
            if value.shape != shape or value.dtype != dtype:
                raise CheckpointError(
                    f"{self._path}: {name} is {value.dtype} {tuple(value.shape)}, and this model's "
                    f"is {dtype} {tuple(shape)}; go on with the release that wrote it"
                )
        else:
            value = torch.empty(shape, dtype=dtype, device=device)
        self._world.broadcast(value)
        return value

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Copy the weights and buffers of `Engine.state` into ``model``."""
        for name, own in (*model.named_parameters(), *model.named_buffers()):
            own.copy_(self.get(f"model.{name}", own.shape, own.dtype))
