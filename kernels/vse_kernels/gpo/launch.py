"""Launchers of the pooling's Triton kernels; imported only if they run."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from vse_kernels.gpo import choice
from vse_kernels.gpo.choice import Launch
from vse_kernels.gpo.packed import packed_backward, packed_forward
from vse_kernels.gpo.reference import Operands
from vse_kernels.gpo.triton import (
    network_backward,
    network_forward,
    reduce_rows,
    sort_backward,
    sort_forward,
)


def _readable(given: Operands) -> Operands:
    """Make columns consecutive, as the kernels require; the other two strides are free."""
    features, *others = given
    unit = features if features.stride(2) == 1 else features.contiguous()
    return Operands(unit, *(tensor.contiguous() for tensor in others))


def _padded(weight_table: Tensor, size: int) -> Tensor:
    """Return the table with `size` columns, copied only if K was rounded up."""
    missing = size - weight_table.shape[1]
    return torch.nn.functional.pad(weight_table, (0, missing)) if missing else weight_table


def _packs(features: Tensor) -> bool:
    """Return whether each pair of columns is one aligned 32-bit word."""
    samples, positions, columns = features.stride()
    return (
        features.element_size() == 2
        and columns == 1
        and not (features.shape[2] | samples | positions) & 1
        and features.data_ptr() % 4 == 0
    )


def _halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a number of columns and strides in pairs of columns."""
    return tuple(size // 2 for size in shape)


def _options(how: Launch, features: Tensor) -> dict[str, Any]:
    """Return the compile-time constants of a launch."""
    options: dict[str, Any] = {"COLUMNS": how.columns, "num_warps": how.warps}
    if how.sizes:
        # The interpreter has no PTX, nor have AMD's GPUs.
        return options | {
            "SIZES": how.sizes,
            "ASSEMBLY": features.is_cuda and torch.version.hip is None,
        }
    return options | {"SIZE": how.size} | ({"PARTS": how.parts} if how.parts else {})


def forward(given: Operands, how: Launch, keep: bool) -> tuple[Tensor, Tensor]:
    """Pool features (B, K, D).

    Returns:
        pooled (B, D), and the order (B, K, D) uint8, empty for the network or without `keep`.
    """
    given = _readable(given)
    features = given.features
    samples, positions, columns = features.shape
    pooled = features.new_empty(samples, columns)
    stored = keep and not how.parts
    order = torch.empty(
        features.shape if stored else (0,), dtype=torch.uint8, device=features.device
    )
    if pooled.numel() == 0:
        return pooled, order
    shape = (columns, *features.stride()[:2])
    pairs = None if stored else choice.packed_forward_launch(positions)
    if pairs is not None and _packs(features):
        how, shape = pairs, _halved(shape)
    grid = (samples * triton.cdiv(shape[0], how.columns),)
    options = _options(how, features)
    # Triton launches on the current device, which need not be that of the operands.
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        if how.sizes:
            packed_forward[grid](*given, pooled, positions, *shape, **options)
        elif how.parts:
            given = given._replace(weight_table=_padded(given.weight_table, how.size))
            network_forward[grid](*given, pooled, *shape, **options)
        else:
            sort_forward[grid](*given, pooled, order, positions, *shape, KEEP=stored, **options)
    return pooled, order


def backward(
    gradient: Tensor, given: Operands, order: Tensor, how: Launch
) -> tuple[Tensor, Tensor]:
    """Return the gradients of features (B, K, D) and weight_table (R, K), in their dtypes."""
    given = _readable(given)
    features, _, weight_table, rows = given
    samples, positions, columns = features.shape
    features_gradient = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    if features_gradient.numel() == 0:
        return features_gradient, torch.zeros_like(weight_table)
    gradient = gradient.contiguous()
    shape = (columns, *features.stride()[:2])
    pairs = choice.packed_backward_launch(positions) if how.parts else None
    if pairs is not None and _packs(features) and gradient.data_ptr() % 4 == 0:
        how, shape = pairs, _halved(shape)
    blocks = triton.cdiv(shape[0], how.columns)
    # Sums per program, added in a fixed order below: atomics would not be deterministic.
    partial = features.new_empty(samples, blocks, positions, dtype=torch.float32)
    grid = (samples * blocks,)
    operands = (gradient, *given)
    results = (features_gradient, partial, positions, *shape)
    options = _options(how, features)
    table_gradient = torch.empty_like(weight_table)
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        if how.sizes:
            packed_backward[grid](*operands, *results, **options)
        elif how.parts:
            network_backward[grid](*operands, *results, **options)
        else:
            sort_backward[grid](*operands, order, *results, **options)
        sums = partial.sum(1)
        reduce_rows[weight_table.shape[0], triton.cdiv(positions, 64)](
            sums, rows, table_gradient, samples, positions, SAMPLES=64, POSITIONS=64
        )
    return features_gradient, table_gradient
