"""Pooling for inference on CPU: a sorting network of row minima and maxima, values only.

A comparator orders two positions of all columns at once, so the sort is a fixed list of vectorised
`maximum` and `minimum` calls without indices: several times as fast as torch.sort.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vse_kernels.gpo.reference import Operands

# Values of one position per thread and comparison: large enough to hide the cost of a call, and at
# least torch's grain size; small enough that a chunk's positions stay in cache.
ROW_ELEMENTS = 1 << 15


@lru_cache(maxsize=512)
def comparators(size: int) -> tuple[tuple[int, int], ...]:
    """Return Batcher's odd-even merge network for any size.

    Source: Knuth, The Art of Computer Programming 3, 5.2.2, Algorithm M.

    Args:
        size: number of positions, at least 1.

    Returns:
        Pairs (i, j), i < j, to apply in order. If each pair keeps the larger value at i, position 0
        ends with the largest value.
    """
    pairs = []
    top = 1 << max(0, (size - 1).bit_length() - 1)
    merge = top if size > 1 else 0
    while merge > 0:
        distance, remainder, reach = merge, 0, top
        while distance > 0:
            pairs += [(i, i + distance) for i in range(size - distance) if i & merge == remainder]
            distance, reach, remainder = reach - merge, reach // 2, merge
        merge //= 2
    return tuple(pairs)


def forward(given: Operands) -> Tensor:
    """Pool without keeping the order; pooled (B, D) as in `reference.forward`."""
    features = given.features
    samples, _, columns = features.shape
    pooled = features.new_empty(samples, columns)
    if pooled.numel() == 0:
        return pooled
    longest = int(given.lengths.max())
    dtype = given.accumulation_dtype
    valid = given.valid_positions(longest)
    weights = given.sample_weights(valid)
    step = max(1, ROW_ELEMENTS * torch.get_num_threads() // columns)
    for start in range(0, samples, step):
        part = slice(start, min(start + step, samples))
        inside = valid[part].T[:, :, None]
        # Always a copy: the network works in place.
        block = features[part, :longest].transpose(0, 1).to(dtype, copy=True)
        block = block.contiguous().masked_fill_(~inside, -torch.inf)
        values = list(block.unbind(0))
        spare = torch.empty_like(values[0])
        for i, j in comparators(longest):
            torch.maximum(values[i], values[j], out=spare)
            torch.minimum(values[i], values[j], out=values[j])
            values[i], spare = spare, values[i]
        total = torch.zeros_like(values[0])
        for position, value in enumerate(values):
            kept = value.masked_fill_(~inside[position], 0)
            total.addcmul_(kept, weights[part, position, None])
        pooled[part] = total
    return pooled
