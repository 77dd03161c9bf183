"""Launcher of the mining kernel; imported only if it runs."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vse_kernels.hardest.choice import Blocks
from vse_kernels.hardest.triton import mine

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


def _short_ids(query_ids: Tensor, candidate_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids in 32 bits: int64 ids become their ranks among all ids, padding -1.

    This saves half of a tile's registers for ids, and a fifth of its instructions.
    """
    if query_ids.dtype == candidate_ids.dtype == torch.int32:
        return query_ids.contiguous(), candidate_ids.contiguous()
    ids = torch.cat([query_ids, candidate_ids])
    short = torch.searchsorted(ids.sort().values, ids, out_int32=True).masked_fill_(ids < 0, -1)
    return short[: len(query_ids)], short[len(query_ids) :]


def hardest(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    columns: bool,
    blocks: Blocks,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mine by the Triton kernel; arguments and results as `reference.hardest`."""
    size, width = queries.shape
    others = candidates.shape[0]
    # _NOTHING is below every key, so rows and columns without negatives keep it.
    row_keys, column_keys = (
        torch.full((count,), _NOTHING, dtype=torch.int64, device=queries.device)
        for count in (size, others if columns else 0)
    )
    queries, candidates = (
        matrix if matrix.stride(1) == 1 else matrix.contiguous() for matrix in (queries, candidates)
    )
    if size and others:
        grid = (triton.cdiv(size, blocks.rows) * triton.cdiv(others, blocks.columns),)
        with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
            short_ids = _short_ids(query_ids, candidate_ids)
            mine[grid](
                queries,
                candidates,
                *short_ids,
                row_keys,
                column_keys,
                size,
                others,
                width,
                queries.stride(0),
                candidates.stride(0),
                LOWEST=LOWEST,
                ROWS=blocks.rows,
                COLUMNS=blocks.columns,
                DEPTH=blocks.depth,
                GROUP=blocks.group,
                WHOLE=width % blocks.depth == 0,
                BOTH=columns,
                UPCAST=not queries.is_cuda,
                num_warps=blocks.warps,
                num_stages=blocks.stages,
                maxnreg=blocks.registers,
            )
    return *_decode(row_keys), *_decode(column_keys)
