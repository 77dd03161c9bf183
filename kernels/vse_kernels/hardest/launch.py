"""Launcher of the mining kernel; imported only if it runs."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from vse_kernels.hardest.choice import Blocks
from vse_kernels.hardest.triton import mine, mine_left_over

# The ordered bits of -inf.
LOWEST = -2139095041
_NOTHING = LOWEST << 32


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores float32 and indices int64 of keys; -inf and -1 without a negative."""
    bits = keys >> 32
    bits ^= (bits >> 31) & 0x7FFFFFFF
    score = bits.to(torch.int32).view(torch.float32)
    index = 0x7FFFFFFF - (keys & 0x7FFFFFFF)
    return score, index.masked_fill_(keys == _NOTHING, -1)


def short_ids(query_ids: Tensor, candidate_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids in 32 bits: int64 ids become their ranks among all ids, padding -1.

    Ids of 64 bits take twice the registers of a tile's ids, and spill. Ranks also lie closer
    together, so that fewer tiles can hold equal ones.
    """
    if query_ids.dtype == candidate_ids.dtype == torch.int32:
        return query_ids.contiguous(), candidate_ids.contiguous()
    ids = torch.cat([query_ids, candidate_ids])
    short = torch.searchsorted(ids.sort().values, ids, out_int32=True).masked_fill_(ids < 0, -1)
    return short[: len(query_ids)], short[len(query_ids) :]


def padded(matrix: Tensor, depth: int) -> Tensor:
    """Return `matrix` with zeros up to a width divisible by `depth`, and with aligned rows.

    A row that starts off a multiple of 16 entries is loaded in pieces, and spills; the copy costs
    a fraction of the product. A matrix that fits is returned as it is.
    """
    # Without entries every product is 0, as with one step of zeros.
    spare = -matrix.shape[1] % depth if matrix.shape[1] else depth
    aligned = matrix.stride(0) % 16 == 0 and matrix.data_ptr() % 16 == 0
    if not spare and matrix.stride(1) == 1 and aligned:
        return matrix
    return pad(matrix, (0, spare)) if spare else matrix.clone(memory_format=torch.contiguous_format)


def hardest(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    columns: bool,
    blocks: Blocks,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mine by the Triton kernels; arguments and results as `reference.hardest`."""
    size, others = queries.shape[0], candidates.shape[0]
    # _NOTHING is below every key, so rows and columns without negatives keep it.
    row_keys, column_keys = (
        torch.full((count,), _NOTHING, dtype=torch.int64, device=queries.device)
        for count in (size, others if columns else 0)
    )
    if size and others:
        grid = (triton.cdiv(size, blocks.rows) * triton.cdiv(others, blocks.columns),)
        with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
            left, right = (padded(matrix, blocks.depth) for matrix in (queries, candidates))
            operands = (
                left,
                right,
                *short_ids(query_ids, candidate_ids),
                torch.empty(grid, dtype=torch.bool, device=queries.device),
                row_keys,
                column_keys,
                size,
                others,
                left.shape[1],
                left.stride(0),
                right.stride(0),
            )
            options = {
                "ROWS": blocks.rows,
                "COLUMNS": blocks.columns,
                "DEPTH": blocks.depth,
                "GROUP": blocks.group,
                "BOTH": columns,
                "UPCAST": not queries.is_cuda,
                "PRECISION": blocks.precision,
                "num_warps": blocks.warps,
                "num_stages": blocks.stages,
            }
            mine[grid](*operands, **options)
            mine_left_over[grid](*operands, LOWEST=LOWEST, PART=blocks.part, **options)
    return *_decode(row_keys), *_decode(column_keys)
