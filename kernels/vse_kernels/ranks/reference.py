"""Exact retrieval ranks by counting larger scores, in tiles of one fixed shape.

The last bits of a score depend on the shape of its matrix product and on its position in it, and
they decide ties. So every product here has the shape TILE_CANDIDATES x E x TILE_QUERIES, padded
with zeros at the end of the data, and starts at a global multiple of it: the rows that a process
ranks do not change any score. Scores of positives come from the same products.

Scores are transposed, (candidates, queries): on CPU a tall product is as fast as that of the whole
matrix, a wide one is not (53 against 65 ms per tile of width 1,024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vse_kernels.exact import full_precision

# Retrieval sets come in thousands with five captions per image, so these divide them.
TILE_QUERIES = 1000
TILE_CANDIDATES = 2500
# Tiles with positives are used twice. This many are kept, 10 MB each; others are computed again.
KEPT_TILES = 64
# A cache line in bytes. Another alignment can select another code path, with other last bits.
ALIGNMENT = 64


def _tile_rows(matrix: Tensor, start: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Return rows [start, start + rows) of matrix, zero-padded, contiguous and aligned.

    `start` may be negative, for a shard that begins within a tile.
    """
    first, last = max(start, 0), min(start + rows, matrix.shape[0])
    part = matrix[first:last]
    whole = last - first == rows and part.is_contiguous() and part.dtype == dtype
    if whole and part.data_ptr() % ALIGNMENT == 0:
        return part
    padded = torch.zeros(rows, matrix.shape[1], dtype=dtype, device=matrix.device)
    padded[first - start : last - start] = part
    return padded


class _Strip:
    """One tile of queries against all candidates, a product at a time."""

    def __init__(self, queries: Tensor, candidates: Tensor, start: int) -> None:
        """Cut the tile of `queries` from row `start`, which may be negative."""
        self._dtype = torch.promote_types(queries.dtype, torch.float32)
        self._rows = slice(max(-start, 0), min(queries.shape[0] - start, TILE_QUERIES))
        self._queries = _tile_rows(queries, start, TILE_QUERIES, self._dtype)
        self._candidates = candidates

    def new_tile(self) -> Tensor:
        """Return memory for one product."""
        return self._queries.new_empty(TILE_CANDIDATES, TILE_QUERIES)

    def scores(self, tile: int, out: Tensor) -> Tensor:
        """Write the product with candidate tile `tile` to `out`; return a view without padding."""
        start = tile * TILE_CANDIDATES
        block = _tile_rows(self._candidates, start, TILE_CANDIDATES, self._dtype)
        torch.mm(block, self._queries.T, out=out)
        return out[: self._candidates.shape[0] - start, self._rows]


def _by_tile(query_index: Tensor, index: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Group (query, candidate) pairs by tile: tile -> (candidates within the tile, queries)."""
    groups = {}
    tile = index // TILE_CANDIDATES
    for number in sorted(set(tile.tolist())):
        here = tile == number
        groups[number] = (index[here] - number * TILE_CANDIDATES, query_index[here])
    return groups


def _strip_ranks(
    strip: _Strip, rows: int, tiles: int, positives: tuple[Tensor, Tensor], excluded: Tensor
) -> Tensor:
    """Return the ranks (rows,) of one strip.

    Args:
        strip: source of the scores.
        rows: number of queries in it.
        tiles: number of candidate tiles.
        positives: query and candidate of each positive pair.
        excluded: (rows,) candidate that is left out, or -1.
    """
    query_index, index = positives
    taken = excluded[query_index] != index
    query_index, index = query_index[taken], index[taken]
    positive_groups = _by_tile(query_index, index)
    out = (excluded >= 0).nonzero().squeeze(1)
    excluded_groups = _by_tile(out, excluded[out])

    kept: dict[int, Tensor] = {}
    spare = strip.new_tile()
    best = spare.new_full((rows,), -torch.inf)
    for tile, (candidate, query) in positive_groups.items():
        keep = len(kept) < KEPT_TILES
        scores = strip.scores(tile, strip.new_tile() if keep else spare)
        found = scores[candidate, query]
        # A NaN positive counts as the lowest score.
        found.masked_fill_(found.isnan(), -torch.inf)
        best.scatter_reduce_(0, query, found, "amax")
        if keep:
            kept[tile] = scores
    # Positives and excluded candidates do not compete: -inf is below the lowest threshold.
    best.clamp_(min=torch.finfo(best.dtype).min)
    above = torch.ones(rows, dtype=torch.int64, device=excluded.device)
    for tile in range(tiles):
        scores = kept.pop(tile) if tile in kept else strip.scores(tile, spare)
        for groups in (positive_groups, excluded_groups):
            if tile in groups:
                scores[groups[tile]] = -torch.inf
        # Not below, rather than at least: a NaN score counts against the query.
        below = scores.lt_(best).sum(0)
        above += scores.shape[0] - below.long()
    return above.masked_fill(torch.bincount(query_index, minlength=rows) == 0, 0)


@full_precision()
def ranks(
    queries: Tensor,
    candidates: Tensor,
    positive_offsets: Tensor,
    positive_indices: Tensor,
    excluded: Tensor | None,
    row_start: int,
) -> Tensor:
    """Rank strip by strip; arguments and result as `vse_kernels.retrieval_ranks`."""
    count = queries.shape[0]
    result = torch.zeros(count, dtype=torch.int64, device=queries.device)
    if excluded is None:
        excluded = torch.full_like(result, -1)
    query_index = torch.repeat_interleave(
        torch.arange(count, device=queries.device), positive_offsets.diff()
    )
    tiles = -(-candidates.shape[0] // TILE_CANDIDATES)
    for start in range(-(row_start % TILE_QUERIES), count, TILE_QUERIES):
        first, last = max(start, 0), min(start + TILE_QUERIES, count)
        pairs = slice(int(positive_offsets[first]), int(positive_offsets[last]))
        result[first:last] = _strip_ranks(
            _Strip(queries, candidates, start),
            last - first,
            tiles,
            (query_index[pairs] - first, positive_indices[pairs]),
            excluded[first:last],
        )
    return result
