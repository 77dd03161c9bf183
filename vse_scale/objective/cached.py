"""Gradients of one large batch by micro-batches, its negatives undiminished.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP
2021 (GradCache): embed everything without a graph, take the loss and its gradient with respect to
the embeddings once, then embed each micro-batch again, with a graph, and propagate its share of
that gradient. This costs a second forward pass, and the memory of one micro-batch. Accumulating
the gradients of micro-batches' own losses would take negatives from the micro-batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

MicroBatch = TypeVar("MicroBatch")


class Result(Protocol):
    """The part of an objective's result that is used here."""

    @property
    def loss(self) -> Tensor:
        """Scalar, with a graph to the embeddings."""

    def detached(self) -> Self:
        """Return the same without the graph."""


Found = TypeVar("Found", bound=Result)


def cached_backward(
    micro_batches: Sequence[MicroBatch],
    encode: Callable[[MicroBatch], tuple[Tensor, Tensor]],
    objective: Callable[[Tensor, Tensor], Found],
    backward: Callable[[Tensor], object],
) -> Found:
    """Accumulate the parameters' gradient of ``objective`` over all micro-batches together.

    Dropout draws the same in both passes. A layer whose output depends on the rest of the batch,
    such as live BatchNorm, would make this another gradient than that of the whole batch.

    Args:
        micro_batches: arguments of ``encode``, in the order of the pairs.
        encode: maps a micro-batch to image and caption embeddings, (m, D) and (p, D). It is called
            twice for each, and enters autocast itself where wanted.
        objective: the loss of the embeddings of all micro-batches, in their order.
        backward: called once per micro-batch with a scalar whose backward adds that micro-batch's
            share; under DeepSpeed, the engine's. The scalars' values mean nothing.

    Returns:
        The result of ``objective``, its loss detached.

    Raises:
        ValueError: there are no micro-batches.
    """
    if not micro_batches:
        raise ValueError("there are no micro-batches")
    states = []
    embedded = []
    with torch.no_grad():
        for micro_batch in micro_batches:
            states.append(_RandomState())
            embedded.append(encode(micro_batch))
    images, captions = (torch.cat(rows).requires_grad_() for rows in zip(*embedded, strict=True))
    result = objective(images, captions)
    to_images, to_captions = torch.autograd.grad(result.loss, (images, captions))
    shares = zip(
        torch.split(to_images, [len(rows) for rows, _ in embedded]),
        torch.split(to_captions, [len(rows) for _, rows in embedded]),
        strict=True,
    )
    # Replaying the last micro-batch leaves the generators where the first pass did.
    for micro_batch, state, grads in zip(micro_batches, states, shares, strict=True):
        state.restore()
        backward(_inner_product(encode(micro_batch), grads))
    return result.detached()


def _inner_product(values: Iterable[Tensor], weights: Iterable[Tensor]) -> Tensor:
    """Return a scalar whose gradient with respect to ``values`` is ``weights``."""
    products = [(value * weight).sum() for value, weight in zip(values, weights, strict=True)]
    return torch.stack(products).sum()


class _RandomState:
    """The default generators of the CPU and of the current GPU, as they were when this was made."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu)
