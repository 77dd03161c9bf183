"""Differentiation of the pooling, and the choice of its implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vse_kernels.gpo import network, reference


class GPOPool(torch.autograd.Function):
    """gpo_pool's forward and backward; `keep` says whether a backward will follow."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        lengths: Tensor,
        weight_table: Tensor,
        rows: Tensor,
        keep: bool,
    ) -> Tensor:
        """Pool features (B, K, D) to (B, D)."""
        if not keep and features.device.type == "cpu":
            return network.forward(features, lengths, weight_table, rows)
        pooled, order = reference.forward(features, lengths, weight_table, rows)
        ctx.save_for_backward(features, lengths, weight_table, rows, order)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        """Gradients of features (B, K, D) and weight_table (R, K)."""
        features, table = reference.backward(gradient, *ctx.saved_tensors)
        return features, None, table, None, None
