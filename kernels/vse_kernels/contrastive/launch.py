"""Launcher of the kernel of contrastive losses; imported only if it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from vse_kernels.contrastive import choice
from vse_kernels.contrastive.reference import Operands, Sums, Weights
from vse_kernels.contrastive.triton import contrast
from vse_kernels.exact import full_precision
from vse_kernels.hardest.launch import padded, short_ids
from vse_kernels.hardest.reference import spans

# Weights of a strip of rows. Each strip reads and writes the whole gradient of the candidates: the
# more rows it has, the less often.
STRIP_BYTES = 256 * 2**20
# Sums of tiles that are stored before they are added up.
SUM_BYTES = 64 * 2**20
_PARTS = {"sums": (2, 2), "softmax": (1, 0), "sigmoid": (4, 1)}


@dataclass(frozen=True)
class _Part:
    """A strip of the scores: its rows, the sums of each tile, and its weights or None."""

    rows: slice
    of_rows: Tensor
    of_columns: Tensor
    weights: Tensor | None


def softmax_sums(given: Operands, sums: Sums) -> None:
    """Add to `sums`; arguments as `reference.softmax_sums`."""
    scale = given.scale.float()
    for part in _parts("sums", given):
        row_sums = Sums(sums.row_top[part.rows], sums.row_sum[part.rows], *sums[2:])
        for (top, total), (tops, totals) in (
            (row_sums[:2], part.of_rows),
            (sums[2:], part.of_columns),
        ):
            largest = torch.maximum(top, tops.amax(0))
            shift = largest.where(largest != -torch.inf, 0.0)
            total.mul_(((top - shift) * scale).exp_())
            total.add_((totals * ((tops - shift) * scale).exp_()).sum(0))
            top.copy_(largest)


def softmax_weights(given: Operands, shifts: tuple[Tensor, Tensor], found: Weights) -> None:
    """Add to `found`; arguments as `reference.softmax_weights`."""
    for part in _parts("softmax", given, shifts):
        found.row_product[part.rows] += part.of_rows[0].sum(0)
        _add_gradients(given, part, found)


def sigmoid_weights(given: Operands, found: Weights) -> None:
    """Add to `found`; arguments as `reference.sigmoid_weights`."""
    for part in _parts("sigmoid", given):
        sides = (found.row_loss, found.row_weight, found.row_product)
        for side, of_tiles in zip(sides, part.of_rows, strict=False):
            side[part.rows] += of_tiles.sum(0)
        for top, tops in (
            (found.row_top[part.rows], part.of_rows[3]),
            (found.column_top, part.of_columns[0]),
        ):
            torch.maximum(top, tops.amax(0), out=top)
        _add_gradients(given, part, found)


def _parts(
    kind: str, given: Operands, shifts: tuple[Tensor, Tensor] | None = None
) -> Iterator[_Part]:
    """Run the kernel of `kind` over strips of rows, and yield what each has."""
    queries, candidates = given.queries, given.candidates
    size, others, device = len(queries), len(candidates), queries.device
    if not size or not others:
        return
    # In the interpreter, on a CPU, as for Hopper.
    major = torch.cuda.get_device_properties(device).major if queries.is_cuda else 9
    blocks = choice.blocks(kind, queries.dtype, major)
    width = triton.cdiv(others, 16) * 16  # aligned rows
    # A row takes its weights; or its sums in each tile and a share of the columns': width / 8.
    fit = SUM_BYTES * 8 // width if kind == "sums" else STRIP_BYTES // (width * queries.itemsize)
    step = max(blocks.rows, fit // blocks.rows * blocks.rows)
    numbers = torch.stack([given.scale, given.bias]).float()
    times = numbers if given.times is None else given.times.float().contiguous()
    of_query, of_candidate = (numbers, numbers) if shifts is None else shifts
    row_parts, column_parts = _PARTS[kind]
    with full_precision(), torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
        left, right = (padded(matrix, blocks.depth) for matrix in (queries, candidates))
        left_ids, right_ids = short_ids(given.query_ids, given.candidate_ids)
        for rows in spans(size, step):
            height = rows.stop - rows.start
            tiles = triton.cdiv(height, blocks.rows), triton.cdiv(others, blocks.columns)
            weights = None if kind == "sums" else queries.new_empty((height, width))
            of_rows = numbers.new_empty((row_parts, tiles[1], height))
            of_columns = numbers.new_empty((column_parts, tiles[0], others))
            contrast[(tiles[0] * tiles[1],)](
                left[rows],
                right,
                left_ids[rows],
                right_ids,
                numbers,
                of_query if shifts is None else of_query[rows],
                of_candidate,
                times if given.times is None else times[rows],
                numbers if weights is None else weights,
                of_rows,
                of_columns,
                height,
                others,
                left.shape[1],
                left.stride(0),
                right.stride(0),
                width,
                KIND=kind,
                COUNTED=given.times is not None,
                UNIT=choice.unit(queries.dtype),
                ROWS=blocks.rows,
                COLUMNS=blocks.columns,
                DEPTH=blocks.depth,
                GROUP=blocks.group,
                UPCAST=not queries.is_cuda,
                PRECISION=blocks.precision,
                num_warps=blocks.warps,
                num_stages=blocks.stages,
            )
            there = None if weights is None else weights[:, :others]
            yield _Part(rows, of_rows, of_columns, there)


def _add_gradients(given: Operands, part: _Part, found: Weights) -> None:
    """Add the products of a strip's weights to the gradients that are wanted."""
    if part.weights is None:
        raise ValueError("the strip has no weights")
    share = 1 / choice.unit(part.weights.dtype)
    if found.query_gradient is not None:
        _add_product(found.query_gradient[part.rows], part.weights, given.candidates, share)
    if found.candidate_gradient is not None:
        _add_product(found.candidate_gradient, part.weights.T, given.queries[part.rows], share)


def _add_product(total: Tensor, weights: Tensor, rows: Tensor, share: float) -> None:
    """Add `share` times ``weights`` (m, n) @ ``rows`` (n, E) to ``total`` (m, E), in float32."""
    if weights.is_cuda and weights.dtype != torch.float32:
        # Not `addmm`, which takes a float32 sum beside 16-bit factors in new versions alone.
        total.add_(torch.mm(weights, rows, out_dtype=torch.float32), alpha=share)
    else:
        total.addmm_(weights.float(), rows.float(), alpha=share)
