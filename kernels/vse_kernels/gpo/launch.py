"""Launching the Triton kernels of the pooling; imported only where they run."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vse_kernels.gpo.choice import Launch
from vse_kernels.gpo.triton import (
    network_backward,
    network_forward,
    reduce_rows,
    sort_backward,
    sort_forward,
)


def _unit_stride(features: Tensor) -> Tensor:
    """The kernels read rows of consecutive columns; any other two strides are fine."""
    return features if features.stride(2) == 1 else features.contiguous()


def _padded(weight_table: Tensor, size: int) -> Tensor:
    """The table with `size` columns; a copy only where K was rounded up."""
    missing = size - weight_table.shape[1]
    return torch.nn.functional.pad(weight_table, (0, missing)) if missing else weight_table


def forward(
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    launch: Launch,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Pool; arguments as those of `reference.forward`.

    Returns:
        pooled (B, D), and the order (B, K, D) uint8, empty for the network or without `keep`.
    """
    samples, positions, columns = features.shape
    features = _unit_stride(features)
    weight_table = weight_table.contiguous()
    pooled = features.new_empty(samples, columns)
    stored = keep and launch.comparators is None
    order = torch.empty(
        features.shape if stored else (0,), dtype=torch.uint8, device=features.device
    )
    if pooled.numel() == 0:
        return pooled, order
    grid = (samples * triton.cdiv(columns, launch.columns),)
    operands = (features, lengths.contiguous(), weight_table, rows.contiguous(), pooled)
    shape = (positions, columns, features.stride(0), features.stride(1))
    options = {"SIZE": launch.size, "COLUMNS": launch.columns, "num_warps": launch.warps}
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        if launch.comparators is None:
            sort_forward[grid](*operands, order, *shape, KEEP=stored, **options)
        else:
            table = _padded(weight_table, launch.size)
            operands = (features, lengths.contiguous(), table, rows.contiguous(), pooled)
            network_forward[grid](*operands, *shape[1:], PAIRS=launch.comparators, **options)
    return pooled, order


def backward(
    gradient: Tensor,
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    order: Tensor,
    launch: Launch,
) -> tuple[Tensor, Tensor]:
    """Gradients of features (B, K, D) and weight_table (R, K), in their dtypes."""
    samples, positions, columns = features.shape
    features = _unit_stride(features)
    weight_table = weight_table.contiguous()
    rows = rows.contiguous()
    features_gradient = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    if features_gradient.numel() == 0:
        return features_gradient, torch.zeros_like(weight_table)
    blocks = triton.cdiv(columns, launch.columns)
    partial = features.new_empty(samples, blocks, positions, dtype=torch.float32)
    operands = (gradient.contiguous(), features, lengths.contiguous(), weight_table, rows)
    results = (features_gradient, partial)
    shape = (positions, columns, features.stride(0), features.stride(1))
    options = {"SIZE": launch.size, "COLUMNS": launch.columns, "num_warps": launch.warps}
    table_gradient = torch.empty_like(weight_table)
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        if launch.comparators is None:
            sort_backward[samples * blocks,](*operands, order, *results, *shape, **options)
        else:
            network_backward[samples * blocks,](
                *operands, *results, *shape, PAIRS=launch.comparators, **options
            )
        sums = partial.sum(1)
        grid = (weight_table.shape[0], triton.cdiv(positions, 64))
        reduce_rows[grid](sums, rows, table_gradient, samples, positions, SAMPLES=64, POSITIONS=64)
    return features_gradient, table_gradient
