"""Mining by either implementation, and its operator for torch.compile.

Eager code calls `hardest`; torch.compile traces the opaque operator `mine` instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vse_kernels.hardest import choice, reference


def hardest(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    columns: bool,
    with_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row scores and indices (M,), column scores and indices (N,) or empty."""
    if not with_triton:
        return reference.hardest(queries, candidates, query_ids, candidate_ids, columns)
    from vse_kernels.hardest import launch

    # CPU tensors run in the interpreter, for which any blocks do.
    major = torch.cuda.get_device_properties(queries.device).major if queries.is_cuda else 0
    blocks = choice.blocks(queries.dtype, major)
    return launch.hardest(queries, candidates, query_ids, candidate_ids, columns, blocks)


mine = torch.library.custom_op("vse_kernels::hardest_negatives", hardest, mutates_args=())


@mine.register_fake
def _shapes(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    columns: bool,
    with_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = queries.shape[0]
    others = candidates.shape[0] if columns else 0
    dtype = reference.score_dtype(queries)
    return (
        queries.new_empty(rows, dtype=dtype),
        queries.new_empty(rows, dtype=torch.int64),
        queries.new_empty(others, dtype=dtype),
        queries.new_empty(others, dtype=torch.int64),
    )
