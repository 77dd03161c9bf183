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
from vse_kernels.gpo.triton import network_backward, network_forward, reduce_rows


def _readable(given: Operands, words: bool) -> Operands:
    """Make columns consecutive, and pairs of them words where these are read.

    The other two strides are free.
    """
    features, *others = given
    samples, positions, columns = features.stride()
    if columns != 1 or (words and (samples | positions) & 1):
        features = features.contiguous()
    return Operands(
        _on_words(features) if words else features, *(tensor.contiguous() for tensor in others)
    )


def _on_words(tensor: Tensor) -> Tensor:
    """Return the tensor, a copy if it starts between two words of 32 bits."""
    return tensor.clone() if tensor.data_ptr() % 4 else tensor


def _shape(features: Tensor, pairs: bool, words: bool) -> tuple[int, int, int]:
    """Return the number of columns, or of their pairs, and two strides, in words or in columns."""
    columns = features.shape[2]
    sample, position, _ = features.stride()
    if words:
        sample, position = sample // 2, position // 2
    return (columns + 1) // 2 if pairs else columns, sample, position


def _options(how: Launch, features: Tensor, pairs: bool, words: bool) -> dict[str, Any]:
    """Return the compile-time constants of a launch."""
    return {
        **({"WORDS": words} if pairs else {}),
        "SIZES": how.sizes,
        "LANES": how.lanes,
        "COLUMNS": how.columns,
        "ASSEMBLY": features.is_cuda and torch.version.hip is None,
        "num_warps": how.warps,
    }


def forward(given: Operands) -> Tensor:
    """Pool features (B, K, D); pooled (B, D)."""
    pairs = choice.packs(given.features)
    samples, positions, columns = given.features.shape
    words = pairs and columns % 2 == 0
    given = _readable(given, words)
    features = given.features
    pooled = features.new_empty(samples, columns)
    if pooled.numel() == 0:
        return pooled
    how = choice.forward_launch(positions)
    shape = _shape(features, pairs, words)
    run = packed_forward if pairs else network_forward
    # Triton launches on the current device, which need not be that of the operands.
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        run[samples * triton.cdiv(shape[0], how.columns),](
            *given, pooled, positions, *shape, **_options(how, features, pairs, words)
        )
    return pooled


def backward(gradient: Tensor, given: Operands) -> tuple[Tensor, Tensor]:
    """Return the gradients of features (B, K, D) and weight_table (R, K), in their dtypes."""
    pairs = choice.packs(given.features, backward=True)
    samples, positions, columns = given.features.shape
    words = pairs and columns % 2 == 0
    given = _readable(given, words)
    features, _, weight_table, rows = given
    features_gradient = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    if features_gradient.numel() == 0:
        return features_gradient, torch.zeros_like(weight_table)
    gradient = _on_words(gradient.contiguous()) if words else gradient.contiguous()
    how = choice.backward_launch(positions)
    shape = _shape(features, pairs, words)
    blocks = triton.cdiv(shape[0], how.columns)
    # Sums per program, added in a fixed order below: atomics would not be deterministic.
    partial = features.new_empty(samples, blocks, positions, dtype=torch.float32)
    run = packed_backward if pairs else network_backward
    table_gradient = torch.empty_like(weight_table)
    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        run[samples * blocks,](
            gradient,
            *given,
            features_gradient,
            partial,
            positions,
            *shape,
            **_options(how, features, pairs, words),
        )
        sums = partial.sum(1)
        reduce_rows[weight_table.shape[0], triton.cdiv(positions, 64)](
            sums, rows, table_gradient, samples, positions, SAMPLES=64, POSITIONS=64
        )
    return features_gradient, table_gradient
