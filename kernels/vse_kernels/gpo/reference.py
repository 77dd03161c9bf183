"""Sort-and-weight pooling in plain torch: reference for the kernels, and the CPU training path.

Per sample and column, the result is the dot product of the valid values in descending order with
the weight row of the sample. The sort is stable: equal values take weights in the order of their
positions. NaN sorts first, as in torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from vse_kernels.exact import full_precision

# Elements per sort: bounds the int64 order and the copies that torch.sort makes.
CHUNK_ELEMENTS = 1 << 21
CPU_CHUNK_ELEMENTS = 1 << 19  # that the copies stay in cache
# On a CPU numpy sorts integers by vector instructions, ten times as fast as torch.sort, but in one
# thread.
MOST_THREADS = 4
_POSITION_BITS = 15
_HAS_NUMPY = find_spec("numpy") is not None  # torch does without


class Operands(NamedTuple):
    """Operands of the pooling, common to all implementations.

    Attributes:
        features: (B, K, D) floating.
        lengths: (B,) integer, 1 to K.
        weight_table: (R, K) floating.
        rows: (B,) integer, 0 to R - 1.
    """

    features: Tensor
    lengths: Tensor
    weight_table: Tensor
    rows: Tensor

    @property
    def accumulation_dtype(self) -> torch.dtype:
        """Float64 if features or weights are float64, else float32."""
        common = torch.promote_types(self.features.dtype, self.weight_table.dtype)
        return torch.promote_types(common, torch.float32)

    def valid_positions(self, positions: int) -> Tensor:
        """Return a mask (B, positions) bool of the positions within the lengths."""
        return torch.arange(positions, device=self.lengths.device) < self.lengths[:, None]

    def sample_weights(self, valid: Tensor) -> Tensor:
        """Return the weights of each sample, 0 where not `valid`; (B, positions) like `valid`."""
        weights = self.weight_table[:, : valid.shape[1]][self.rows]
        return weights.to(self.accumulation_dtype).masked_fill(~valid, 0)


def order_dtype(positions: int) -> torch.dtype:
    """Return the smallest dtype of a position: one byte up to 256 positions."""
    if positions <= 256:
        return torch.uint8
    return torch.int16 if positions <= 1 << 15 else torch.int32


def batch_chunks(features: Tensor) -> list[slice]:
    """Return slices of the batch (B, K, D) of a size that suits its device."""
    samples, positions, columns = features.shape
    most = CPU_CHUNK_ELEMENTS if features.device.type == "cpu" else CHUNK_ELEMENTS
    step = max(1, most // max(1, positions * columns))
    return [slice(start, min(start + step, samples)) for start in range(0, samples, step)]


@full_precision()
def forward(given: Operands) -> tuple[Tensor, Tensor]:
    """Pool by a stable descending sort.

    Returns:
        pooled (B, D) in the dtype of `features`, and the order (B, D, K): the position of the
        k-th largest value, as `order_dtype`.
    """
    features = given.features
    samples, positions, columns = features.shape
    dtype = given.accumulation_dtype
    valid = given.valid_positions(positions)
    weights = given.sample_weights(valid)
    pooled = features.new_empty(samples, columns)
    order = torch.empty(
        samples, columns, positions, dtype=order_dtype(positions), device=features.device
    )
    for part in batch_chunks(features):
        inside = valid[part, None, :]
        column_major = features[part].transpose(1, 2).contiguous()
        column_major.masked_fill_(~inside, -torch.inf)
        values, indices = _sort(column_major)
        values = values.masked_fill_(~inside, 0).to(dtype)
        pooled[part] = torch.bmm(values, weights[part, :, None]).squeeze(2)
        order[part] = indices
    return pooled, order


def _sort(column_major: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row of (B, D, K), which is overwritten, stably, the largest and NaN first.

    Returns:
        The values and their positions; sorted by numpy, -0 has become 0.
    """
    plain = type(column_major) is Tensor  # with values, as those that only have a shape lack
    on_cpu = plain and column_major.device.type == "cpu" and column_major.dtype == torch.float32
    few = column_major.shape[2] <= 1 << _POSITION_BITS and torch.get_num_threads() <= MOST_THREADS
    if not (on_cpu and few and _HAS_NUMPY) or bool(column_major.isnan().any()):
        return column_major.sort(dim=2, descending=True, stable=True)
    # Of equals, 0 and -0 among them, the first position is the smallest.
    keys = _rising(column_major.add_(0.0).view(torch.int32)).bitwise_not_().long()
    keys <<= _POSITION_BITS
    keys |= torch.arange(column_major.shape[2])
    keys.numpy().sort(axis=2)
    values = _rising((keys >> _POSITION_BITS).int().bitwise_not_()).view(torch.float32)
    return values, keys.bitwise_and_((1 << _POSITION_BITS) - 1)


def _rising(bits: Tensor) -> Tensor:
    """Order the bits (int32) of float32 as the floats are, or turn that into the bits again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@full_precision()
def backward(gradient: Tensor, given: Operands, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients (B, K, D) and (R, K), in the dtypes of features and weight_table.

    Positions beyond the length get exactly zero, even if they contain NaN.
    """
    features, _, weight_table, rows = given
    samples, positions, _ = features.shape
    dtype = given.accumulation_dtype
    valid = given.valid_positions(positions)
    weights = given.sample_weights(valid)
    features_gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    sample_gradient = torch.empty(samples, positions, dtype=dtype, device=features.device)
    for part in batch_chunks(features):
        inside = valid[part, None, :]
        indices = order[part].long()
        upstream = gradient[part].to(dtype)
        values = features[part].transpose(1, 2).gather(2, indices).masked_fill_(~inside, 0)
        sample_gradient[part] = torch.bmm(upstream[:, None, :], values.to(dtype)).squeeze(1)
        shares = (upstream[:, :, None] * weights[part, None, :]).masked_fill_(~inside, 0)
        scattered = torch.empty_like(shares).scatter_(2, indices, shares)
        features_gradient[part] = scattered.transpose(1, 2)
    sample_gradient.masked_fill_(~valid, 0)
    table_gradient = torch.zeros(weight_table.shape, dtype=dtype, device=features.device)
    # index_put_ accumulates in a fixed order on every device; index_add_ only on CPU.
    table_gradient.index_put_((rows.long(),), sample_gradient, accumulate=True)
    return features_gradient, table_gradient.to(weight_table.dtype)
