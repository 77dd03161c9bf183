"""The gradient of a rank's embeddings, which is known with the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vse_scale.objective.batch import GlobalBatch, Tile


class Gradient:
    """The gradient of this rank's embeddings, from the derivatives of the scores tile by tile.

    Attributes:
        images: (n, D).
        captions: (b, D).
    """

    def __init__(self, batch: GlobalBatch) -> None:
        self._batch = batch
        self.images = torch.zeros_like(batch.own_images)
        self.captions = torch.zeros_like(batch.own_captions)

    def add(self, tile: Tile, weight: Tensor) -> None:
        """Add the part of a tile, of whose scores the derivatives are ``weight``.

        Args:
            tile: of the batch.
            weight: (r, c), or (r / k, c) by images.
        """
        batch = self._batch
        rows = batch.rows_of(tile.rows)
        if len(weight) != rows.stop - rows.start:
            weight = weight.view(-1, batch.per_image, weight.shape[1]).sum(1)
        if tile.of_images:
            own = batch.rows_of(batch.own_part(tile.rows))
            self.images[own].addmm_(weight, batch.captions[tile.columns])
        if tile.of_captions:
            own = batch.own_part(tile.columns)
            self.captions[own].addmm_(weight.T, batch.image_rows[rows])

    def add_own(self, images: Tensor | None, captions: Tensor | None, each: Tensor) -> None:
        """Add ``each`` times ``images`` (n, D) and ``captions`` (b, D); None: nothing."""
        for total, share in ((self.images, images), (self.captions, captions)):
            if share is not None:
                total.addcmul_(share, each.to(total))

    def add_pairs(self, weight: Tensor) -> None:
        """Add the part of this rank's pairs, with their scores' derivatives ``weight`` (b,)."""
        batch, weight = self._batch, weight[:, None]
        pulled = (weight * batch.own_captions).view(len(self.images), -1, self.images.shape[1])
        self.images += pulled.sum(1)
        self.captions += weight * batch.own_images.repeat_interleave(batch.per_image, 0)


def with_gradient(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return ``loss`` with a graph that gives each of ``inputs`` its gradient, known already.

    A graph that ``loss`` has goes on.
    """
    result: Tensor = _WithGradient.apply(loss, len(inputs), *inputs, *gradients)  # type: ignore[no-untyped-call]
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        inputs, gradients = tensors[:count], tensors[count:]
        moved = (g.to(i.device, i.dtype) for i, g in zip(inputs, gradients, strict=True))
        ctx.save_for_backward(*moved)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [grad.to(value.device) * value for value in ctx.saved_tensors]
        return (grad, None, *gradients, *(None for _ in gradients))
