"""Sort-and-weight pooling, the operator of GPO (Chen et al., CVPR 2021, equation 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from vse_kernels.checks import (
    FLOATS,
    INTEGERS,
    require_dtype,
    require_range,
    require_same_device,
    require_shape,
    values_are_checked,
)
from vse_kernels.dispatch import use_triton
from vse_kernels.gpo.autograd import GPOPool
from vse_kernels.gpo.choice import unsupported

__all__ = ["gpo_pool"]


def gpo_pool(
    features: Tensor,
    lengths: Tensor,
    weight_table: Tensor,
    rows: Tensor,
    impl: str = "auto",
) -> Tensor:
    """Sort each column of a set in descending order and take the weighted sum.

    Source: Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR
    2021, equation 4. Accumulates in float32, or float64 where an operand is; the sort is stable and
    NaN sorts first, as in `torch.sort`.

    Args:
        features: (B, K, D) float32, bfloat16, float16 or float64; any strides. Positions beyond a
            sample's length are ignored, NaN included, and get zero gradient.
        lengths: (B,) int64 or int32, 1 to K. Where they are not checked, see below, one outside
            [0, K] counts as the nearest of these, and a sample without positions is 0.
        weight_table: (R, K) floating; row r weighs the sorted positions, largest value first.
            Weights beyond a sample's length are ignored.
        rows: (B,) int64 or int32, the row of `weight_table` of each sample. Where they are not
            checked, one outside the table counts as the nearest row.
        impl: "auto", "torch" or "triton". "auto" falls back to torch with one warning; "triton"
            raises if it cannot run.

    Returns:
        pooled (B, D) in the dtype of `features`; differentiable once in `features` and
        `weight_table`.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes or devices disagree, `impl` is unknown, or, on CPU tensors or with
            VSE_KERNELS_CHECK=1 in the environment, lengths or rows are out of range.
    """
    _check(features, lengths, weight_table, rows)
    if not values_are_checked(rows):
        rows = rows.clamp(0, weight_table.shape[0] - 1)
    limit = unsupported(features.shape[1], features.dtype, weight_table.dtype)
    with_triton = use_triton("gpo_pool", impl, features, limit)
    # Inference needs no order, so it skips the store.
    keep = torch.is_grad_enabled() and (features.requires_grad or weight_table.requires_grad)
    pooled: Tensor = GPOPool.apply(  # type: ignore[no-untyped-call]
        features, lengths, weight_table, rows, with_triton, keep
    )
    return pooled


def _check(features: Tensor, lengths: Tensor, weight_table: Tensor, rows: Tensor) -> None:
    require_dtype("features", features, FLOATS)
    require_dtype("weight_table", weight_table, FLOATS)
    require_dtype("lengths", lengths, INTEGERS)
    require_dtype("rows", rows, INTEGERS)
    require_shape("features", features, (None, None, None), "gpo_pool")
    samples, positions, _ = features.shape
    if positions == 0:
        raise ValueError(f"features has shape {tuple(features.shape)}; K must be at least 1")
    of_features = f"features of shape {tuple(features.shape)}"
    require_shape("lengths", lengths, (samples,), of_features)
    require_shape("rows", rows, (samples,), of_features)
    require_shape("weight_table", weight_table, (None, positions), of_features)
    require_same_device(features=features, lengths=lengths, weight_table=weight_table, rows=rows)
    require_range("lengths", lengths, 1, positions, of_features)
    if samples and not weight_table.shape[0]:
        shape = tuple(weight_table.shape)
        raise ValueError(f"weight_table has shape {shape}; it must have at least 1 row")
    table = f"weight_table of shape {tuple(weight_table.shape)}"
    require_range("rows", rows, 0, weight_table.shape[0] - 1, table)
