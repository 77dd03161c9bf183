"""A run's tensors on disk: one file, whatever the number of ranks and the ZeRO stage.

DeepSpeed's own checkpoints belong to the layout that wrote them; its conversion to another takes a
second tool, and under stage 3 mixes up learning rates and step counts. A retrieval model's state is
a few gigabytes, so it is gathered and kept whole. One rank writes and reads the file: the folder of
a run need not be visible to other machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
        """Copy the weights and buffers of `Engine.shares` into ``model``."""
        for name, own in (*model.named_parameters(), *model.named_buffers()):
            own.copy_(self.get(f"model.{name}", own.shape, own.dtype))


# The format's names of dtypes, in the order in which its library lays out a file: widest first.
_DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 1 << 24  # bytes that are written and hashed at once
_ALIGNED = 8  # bytes: the header's length is a multiple of it


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], check: Callable[[], None] = lambda: None
) -> str:
    """Write contiguous ``tensors`` of the CPU to a new safetensors file; return its sha256.

    The bytes are those of ``safetensors.torch.save_file``, which would have to be read again to be
    hashed: a file may be larger than what the system keeps of it in memory.

    Args:
        path: of the file.
        tensors: by name.
        check: is called between two parts of the file, and may raise.

    Raises:
        OSError: it cannot be written.
    """
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for chunk in _safetensors(tensors):
            check()
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def laid_out(
    kinds: Mapping[str, tuple[torch.dtype, torch.Size]],
) -> tuple[bytes, dict[str, int], int]:
    """Return the layout of a safetensors file with tensors of these dtypes and shapes.

    Returns:
        Its first bytes; the place of each tensor in it, in the order of the file; its length.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name in sorted(kinds, key=lambda name: (ranks[kinds[name][0]], name)):
        (dtype, shape), start = kinds[name], end
        end += dtype.itemsize * shape.numel()
        header[name] = {
            "dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    head = len(text).to_bytes(8, "little") + text
    starts = {name: len(head) + one["data_offsets"][0] for name, one in header.items()}
    return head, starts, len(head) + end


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    head, starts, _ = laid_out({name: (one.dtype, one.shape) for name, one in tensors.items()})
    yield head
    for name in starts:
        data = tensors[name].view(-1).view(torch.uint8).numpy().data
        yield from (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
