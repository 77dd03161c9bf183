"""Memory of a micro-batch in its forward and backward pass: counted, and never computed.

The model runs on torch's fake tensors, which have shapes and no values: a forward and a backward
pass of a ResNet-152 at 512 pixels take seconds on a laptop and no memory. Every storage that an
operator makes is counted until its last reference is gone.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vse_scale.config import Config
from vse_scale.model.blueprint import blueprint
from vse_scale.model.vse import VSEModel


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch at their most, weights left out.

    Attributes:
        alone: without the gradients of weights.
        with_gradients: with the gradients of weights computed so far.
        with_bucket: with a bucket for all gradients in their place, allocated with the first.
    """

    alone: int
    with_gradients: int
    with_bucket: int


def count_activations(
    config: Config,
    pairs: int,
    *,
    tokens: int,
    bucket: int,
    cuda: bool = True,
    bfloat16: bool = False,
) -> Activations:
    """Count them for ``pairs`` pairs, whose longest caption has ``tokens`` tokens.

    Args:
        config: of the model.
        pairs: of a micro-batch.
        tokens: of its longest caption.
        bucket: bytes that gradients are collected in.
        cuda: whether it runs on a GPU, where GPO makes weights for each sample; on a CPU it makes
            them for each length that occurs.
        bfloat16: whether products are computed in bfloat16.

    Raises:
        ModelError: there is no such model.
    """
    model, _ = blueprint(config)
    if config.engine.activation_checkpointing:
        model.recompute_activations()
    if not cuda:
        images = pairs // config.data.captions_per_image
        model.image.pool.assume_distinct(_distinct_lengths(config, model, images))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model.to_empty(device="cpu").train()
        live = _LiveStorages(model, bucket)
        for weight in (one for one in model.parameters() if one.requires_grad):
            weight.register_post_accumulate_grad_hook(live.take_gradient)  # type: ignore[no-untyped-call]
        with live:
            forward_and_backward(model, config, pairs, tokens, bfloat16=bfloat16)
    return Activations(*live.peaks)


def _distinct_lengths(config: Config, model: VSEModel, images: int) -> int:
    """Return the number of lengths that occur in a batch of ``images`` with dropped cells."""
    if not config.model.image.drop_cells:
        return 1
    draws = torch.rand(images, 1 + model.grid_cells, generator=torch.Generator().manual_seed(0))
    return len(set(model.image.keep(draws).sum(1).tolist()))


def batch_bytes(config: Config, pairs: int) -> int:
    """Return the bytes of the images of ``pairs`` pairs, as the loader delivers them."""
    model, _ = blueprint(config)
    with torch.device("meta"):
        images, _ = model.image.empty_batch(pairs // config.data.captions_per_image)
    size: int = images.nbytes
    return size


def forward_and_backward(
    model: VSEModel, config: Config, pairs: int, tokens: int, *, bfloat16: bool
) -> None:
    """Run ``model`` forward and backward on ``pairs`` pairs, under a mode without values."""
    images = pairs // config.data.captions_per_image
    tokens = min(tokens, model.input_spec.max_tokens)  # the loader cuts longer captions
    lengths = torch.full((pairs,), tokens)
    draws = torch.empty(images, 1 + model.grid_cells)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        inputs, of_regions = model.image.empty_batch(images)
        if of_regions is None:
            inputs = model.image_spec.normalise(inputs)
        ids = torch.zeros(pairs, tokens, dtype=torch.int64)
        embedded = model(inputs, ids, lengths, draws, of_regions)
    del inputs
    torch.autograd.backward(embedded, [torch.empty_like(side) for side in embedded])


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all live storages that were made under it.

    Attributes:
        peaks: the most at any time, as `Activations` has them.
    """

    def __init__(self, model: nn.Module, bucket: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks = [0, 0, 0]
        self._bucket = bucket
        self._now = self._gradients = 0
        self._known: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return result

    def take_gradient(self, weight: Tensor) -> None:
        """Count the gradient of ``weight``."""
        assert weight.grad is not None
        self._gradients += weight.grad.untyped_storage().nbytes()
        self._compare()

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def release(_: object) -> None:
            self._now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, release)
        self._now += size
        self._compare()

    def _compare(self) -> None:
        alone = self._now - self._gradients
        bucket = self._bucket if self._gradients else 0
        now = (alone, self._now, alone + bucket)
        self.peaks = [max(pair) for pair in zip(self.peaks, now, strict=True)]
