"""Autograd function of the pooling, and its two operators for torch.compile.

Eager code calls the implementations directly. torch.compile traces two opaque operators instead,
which cost more per call but never break the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vse_kernels.gpo import network, reference
from vse_kernels.gpo.reference import Operands


def forward(
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    with_triton: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Pool features (B, K, D).

    Returns:
        pooled (B, D), and the order for the backward pass; empty without `keep`, and where Triton
        runs, whose backward pass sorts again.
    """
    given = Operands(features, lengths, weight_table, rows)
    nothing = torch.empty(0, dtype=torch.uint8, device=features.device)
    if with_triton:
        from vse_kernels.gpo import launch

        return launch.forward(given), nothing
    if keep:
        return reference.forward(given)
    if features.device.type == "cpu":
        return network.forward(given), nothing
    return reference.forward(given)[0], nothing


def backward(
    gradient: Tensor,
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    order: Tensor,
    with_triton: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of features (B, K, D) and weight_table (R, K)."""
    given = Operands(features, lengths, weight_table, rows)
    if with_triton:
        from vse_kernels.gpo import launch

        return launch.backward(gradient, given)
    return reference.backward(gradient, given, order)


# Registered beside the functions, not around them: eager calls skip the dispatcher.
_forward_operator = torch.library.custom_op("vse_kernels::gpo_forward", forward, mutates_args=())
_backward_operator = torch.library.custom_op("vse_kernels::gpo_backward", backward, mutates_args=())


@_forward_operator.register_fake
def _forward_shapes(
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    with_triton: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    samples, positions, columns = features.shape
    pooled = features.new_empty(samples, columns)
    if with_triton or not keep:
        return pooled, features.new_empty(0, dtype=torch.uint8)
    order = features.new_empty(samples, columns, positions, dtype=reference.order_dtype(positions))
    return pooled, order


@_backward_operator.register_fake
def _backward_shapes(
    gradient: Tensor,
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    order: Tensor,
    with_triton: bool,
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), weight_table.new_empty(weight_table.shape)


class GPOPool(torch.autograd.Function):
    """Autograd function of gpo_pool; `keep` is True if a backward pass will follow."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        lengths: Tensor,
        weight_table: Tensor,
        rows: Tensor,
        with_triton: bool,
        keep: bool,
    ) -> Tensor:
        """Pool features (B, K, D) to (B, D)."""
        run = _forward_operator if torch.compiler.is_compiling() else forward
        pooled, order = run(features, lengths, weight_table, rows, with_triton, keep)
        ctx.save_for_backward(features, lengths, weight_table, rows, order)
        ctx.with_triton = with_triton
        return pooled

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        """Return the gradients of features (B, K, D) and weight_table (R, K)."""
        run = _backward_operator if torch.compiler.is_compiling() else backward
        features, lengths, weight_table, rows, order = ctx.saved_tensors
        to_features, to_table = run(
            gradient, features, lengths, weight_table, rows, order, ctx.with_triton
        )
        return (
            to_features if ctx.needs_input_grad[0] else None,
            None,
            to_table if ctx.needs_input_grad[2] else None,
            None,
            None,
            None,
        )
