"""Exact retrieval ranks by counting larger scores, in tiles of one fixed shape.

A score's last bits depend on the shape of the product it comes from and on its place in it, and
they decide ties. So every product here has the shape TILE_CANDIDATES x E x TILE_QUERIES, padded
with zeros where the data ends, and starts at a global multiple of it: which rows a process ranks
changes no score. The positives' scores are read from the same products.

Scores lie transposed, (candidates, queries): a product that is tall rather than wide runs at the
speed of the whole matrix on CPU (53 against 65 ms per tile of width 1,024).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Retrieval sets come in thousands with five captions per image, so these divide them.
TILE_QUERIES = 1000
TILE_CANDIDATES = 2500
# Tiles with positives are needed twice. This many are kept, 10 MB each; others are computed again.
KEPT_TILES = 64
# Where a matrix begins in memory can choose another code path of the product: cache line in bytes.
ALIGNMENT = 64


def _tile_rows(matrix: Tensor, start: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Rows [start, start + rows) of matrix, zero where there are none, contiguous and aligned.

    `start` may be negative: a shard that begins within a tile has nothing before it.
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
        """Take the tile of `queries` that begins at row `start`, which may be negative."""
        self._dtype = torch.promote_types(queries.dtype, torch.float32)
        self._rows = slice(max(-start, 0), min(queries.shape[0] - start, TILE_QUERIES))
        self._queries = _tile_rows(queries, start, TILE_QUERIES, self._dtype)
        self._candidates = candidates

    def new_tile(self) -> Tensor:
        """Memory for one product."""
        return self._queries.new_empty(TILE_CANDIDATES, TILE_QUERIES)

    def scores(self, tile: int, out: Tensor) -> Tensor:
        """The product with candidate tile number `tile`, in `out`: a view of what exists of it."""
        start = tile * TILE_CANDIDATES
        block = _tile_rows(self._candidates, start, TILE_CANDIDATES, self._dtype)
        torch.mm(block, self._queries.T, out=out)
        return out[: self._candidates.shape[0] - start, self._rows]


def _by_tile(owner: Tensor, index: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Group (query, candidate) pairs by tile: tile -> (candidates within the tile, queries)."""
    groups = {}
    tile = index // TILE_CANDIDATES
    for number in sorted(set(tile.tolist())):
        here = tile == number
        groups[number] = (index[here] - number * TILE_CANDIDATES, owner[here])
    return groups


def _strip_ranks(
    strip: _Strip, rows: int, tiles: int, positives: tuple[Tensor, Tensor], excluded: Tensor
) -> Tensor:
    """Ranks (rows,) of one strip.

    Args:
        strip: the scores.
        rows: number of queries in it.
        tiles: number of candidate tiles.
        positives: (rows, candidates) of each positive pair.
        excluded: (rows,) candidate that does not take part, or -1.
    """
    owner, index = positives
    taken = excluded[owner] != index
    owner, index = owner[taken], index[taken]
    positive_groups = _by_tile(owner, index)
    out = (excluded >= 0).nonzero().squeeze(1)
    excluded_groups = _by_tile(out, excluded[out])

    kept: dict[int, Tensor] = {}
    spare = strip.new_tile()
    best = spare.new_full((rows,), -torch.inf)
    for tile, (candidate, query) in positive_groups.items():
        keep = len(kept) < KEPT_TILES
        scores = strip.scores(tile, strip.new_tile() if keep else spare)
        found = scores[candidate, query]
        # A NaN positive counts as the lowest score there is.
        found.masked_fill_(found.isnan(), -torch.inf)
        best.scatter_reduce_(0, query, found, "amax")
        if keep:
            kept[tile] = scores
    # Pairs that do not compete are set to -inf, below the lowest threshold.
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
    return above.masked_fill(torch.bincount(owner, minlength=rows) == 0, 0)


def ranks(
    queries: Tensor,
    candidates: Tensor,
    positive_offsets: Tensor,
    positive_indices: Tensor,
    excluded: Tensor | None,
    row_start: int,
) -> Tensor:
    """Arguments and result as those of `vse_kernels.retrieval_ranks`."""
    count = queries.shape[0]
    result = torch.zeros(count, dtype=torch.int64, device=queries.device)
    if excluded is None:
        excluded = torch.full_like(result, -1)
    owner = torch.repeat_interleave(
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
            (owner[pairs] - first, positive_indices[pairs]),
            excluded[first:last],
        )
    return result
