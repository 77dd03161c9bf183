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


def _readable(given: Operands, pairs: bool) -> Operands:
    """Make columns consecutive, and pairs of them words, as the kernels require.

    The other two strides are free.
    """
    features, *others = given
    samples, positions, columns = features.stride()
    if columns != 1 or (pairs and (samples | positions) & 1):
        features = features.contiguous()
    return Operands(
        _on_words(features) if pairs else features, *(tensor.contiguous() for tensor in others)
    )


def _on_words(tensor: Tensor) -> Tensor:
    """Return the tensor, a copy if it starts between two words of 32 bits."""
    return tensor.clone() if tensor.data_ptr() % 4 else tensor


def _padded(weight_table: Tensor, size: int) -> Tensor:
    """Return the table with `size` columns, copied only if K was rounded up."""
    missing = size - weight_table.shape[1]
    return torch.nn.functional.pad(weight_table, (0, missing)) if missing else weight_table


def _halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a number of columns and strides in pairs of columns."""
    return tuple(size // 2 for size in shape)


def _options(how: Launch, features: Tensor) -> dict[str, Any]:
    """Return the compile-time constants of a launch."""
    options: dict[str, Any] = {"COLUMNS": how.columns, "num_warps": how.warps}
    if how.sizes:
        return options | {
            "SIZES": how.sizes, "LANES": how.lanes, "ASSEMBLY": features.is_cuda,
        }  # fmt: skip
    return options | {"SIZE": how.size} | ({"PARTS": how.parts} if how.parts else {})


def forward(given: Operands, how: Launch, keep: bool) -> tuple[Tensor, Tensor]:
    """Pool features (B, K, D).

    Returns:
        pooled (B, D), and the order (B, K, D) uint8, or empty, see `choice.stores_order`.
    """
    pairs = choice.packs(given.features)
    given = _readable(given, pairs)
    features = given.features
    samples, positions, columns = features.shape
    pooled = features.new_empty(samples, columns)
    stored = keep and choice.stores_order(features)
    order = torch.empty(
        features.shape if stored else (0,), dtype=torch.uint8, device=features.device
    )
    if pooled.numel() == 0:
        return pooled, order
    shape = (columns, *features.stride()[:2])
    if pairs:
        how, shape = choice.packed_forward_launch(positions), _halved(shape)
    grid = (samples * triton.cdiv(shape[0], how.columns),)
    options = _options(how, features)
    # Triton launches on the current device, which need not be that of the operands.
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        if how.sizes:
            packed_forward[grid](*given, pooled, positions, *shape, **options)
        elif how.parts:
            given = given._replace(weight_table=_padded(given.weight_table, how.size))
            network_forward[grid](*given, pooled, positions, *shape, **options)
        else:
            sort_forward[grid](*given, pooled, order, positions, *shape, KEEP=stored, **options)
    return pooled, order


def backward(
    gradient: Tensor, given: Operands, order: Tensor, how: Launch
) -> tuple[Tensor, Tensor]:
    """Return the gradients of features (B, K, D) and weight_table (R, K), in their dtypes."""
    pairs = choice.packs(given.features)
    given = _readable(given, pairs)
    features, _, weight_table, rows = given
    samples, positions, columns = features.shape
    features_gradient = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    if features_gradient.numel() == 0:
        return features_gradient, torch.zeros_like(weight_table)
    gradient = gradient.contiguous()
    shape = (columns, *features.stride()[:2])
    if pairs:
        gradient = _on_words(gradient)
        how, shape = choice.packed_backward_launch(positions), _halved(shape)
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
