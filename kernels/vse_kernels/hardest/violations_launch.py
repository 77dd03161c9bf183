"""Launcher of the kernel of all violations; imported only if it runs."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vse_kernels.exact import full_precision
from vse_kernels.hardest.choice import Blocks
from vse_kernels.hardest.launch import padded, short_ids
from vse_kernels.hardest.reference import spans
from vse_kernels.hardest.violations import Side
from vse_kernels.hardest.violations_triton import violate

# Violations of a strip of rows. Each strip reads and writes the whole gradient of the candidates:
# the more rows it has, the less often.
STRIP_BYTES = 256 * 2**20


@full_precision()
def violations(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    rows: Side,
    columns: Side,
    query_gradient: bool,
    candidate_gradient: bool,
    blocks: Blocks,
) -> tuple[Tensor, Tensor]:
    """Add to the sums of `rows` and `columns` by the Triton kernel, and return both gradients.

    Args:
        queries: as of `vse_kernels.all_violations`.
        candidates: likewise.
        query_ids: likewise, -1 where all of a row's positives are padding.
        candidate_ids: likewise.
        rows: of the queries.
        columns: of the candidates, each of which has one positive.
        query_gradient: whether to compute the gradient of the queries, else zeros.
        candidate_gradient: likewise.
        blocks: the tile.
    """
    size, others = len(queries), len(candidates)
    to_queries, to_candidates = (
        torch.zeros(side.shape, dtype=torch.float32, device=side.device)
        for side in (queries, candidates)
    )
    if not size or not others:
        return to_queries, to_candidates
    width = triton.cdiv(others, 16) * 16  # aligned rows
    fit = STRIP_BYTES // (width * queries.itemsize)
    step = max(blocks.rows, fit // blocks.rows * blocks.rows)
    with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
        left, right = (padded(matrix, blocks.depth) for matrix in (queries, candidates))
        left_ids, right_ids = short_ids(query_ids, candidate_ids)
        for strip in spans(size, step):
            # A score violates at most twice for each of its row's positives: 16 bits hold that.
            pull = queries.new_empty((strip.stop - strip.start, width))
            operands = (left[strip], right, left_ids[strip], right_ids)
            _add_sums(*operands, rows.part(strip), columns, pull, blocks)
            there = pull[:, :others]
            if query_gradient:
                _add_product(to_queries[strip], there, candidates)
            if candidate_gradient:
                _add_product(to_candidates, there.T, queries[strip])
    return to_queries, to_candidates


def _add_sums(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    rows: Side,
    columns: Side,
    pull: Tensor,
    blocks: Blocks,
) -> None:
    """Add to the sums of both sides, and write the violations of each score to ``pull``."""
    (height, positives), others = rows.threshold.shape, len(candidates)
    row_tiles, column_tiles = triton.cdiv(height, blocks.rows), triton.cdiv(others, blocks.columns)
    sums = [
        torch.empty(shape, dtype=kind, device=queries.device)
        for shape in ((column_tiles, height, positives), (row_tiles, others, 1))
        for kind in (torch.float32, torch.int32)
    ]
    violate[(row_tiles * column_tiles,)](
        queries,
        candidates,
        query_ids,
        candidate_ids,
        rows.threshold,
        columns.threshold,
        rows.threshold if rows.limit is None else rows.limit,
        columns.threshold if columns.limit is None else columns.limit,
        pull,
        *sums,
        height,
        others,
        queries.shape[1],
        queries.stride(0),
        candidates.stride(0),
        pull.stride(0),
        ROWS=blocks.rows,
        COLUMNS=blocks.columns,
        DEPTH=blocks.depth,
        GROUP=blocks.group,
        POSITIVES=positives,
        QUERY_LIMITED=rows.limit is not None,
        CANDIDATE_LIMITED=columns.limit is not None,
        UPCAST=not queries.is_cuda,
        PRECISION=blocks.precision,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    for side, (loss, count) in ((rows, sums[:2]), (columns, sums[2:])):
        side.loss.add_(loss.sum(0))
        side.count.add_(count.sum(0))


def _add_product(total: Tensor, violations: Tensor, rows: Tensor) -> None:
    """Add ``violations`` (m, n) @ ``rows`` (n, E) to ``total`` (m, E), which is float32."""
    if violations.is_cuda and violations.dtype != torch.float32:
        total += torch.mm(violations, rows, out_dtype=torch.float32)
    else:
        total.addmm_(violations.float(), rows.float())
