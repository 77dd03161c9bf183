"""Exact ranks of both directions between two sets, from one pass over their scores.

Tiles are those of `reference`: TILE_CANDIDATES captions x E x TILE_QUERIES images, padded with
zeros, at global multiples. Each score is computed once and counted for its image and for its
caption. Tiles with positives come first, because scores of positives are the thresholds; up to
KEPT_TILES of them are kept, and the others are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vse_kernels.checks import FLOATS, require_dtype, require_same_device, require_shape
from vse_kernels.exact import full_precision
from vse_kernels.ranks.reference import KEPT_TILES, TILE_CANDIDATES, TILE_QUERIES, _tile_rows

Across = Callable[[Tensor, Literal["max", "sum"]], None]
"""In-place reduction of a tensor over the processes that share the work."""


@torch.no_grad()
@full_precision()
def paired_ranks(
    images: Tensor,
    captions: Tensor,
    image_index: Tensor,
    share: tuple[int, int] = (0, 1),
    across: Across | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank every image's best caption, and every caption's image.

    A rank is 1 + the number of the other side's rows that are not positives of the query and score
    at least as high as its best positive. Exact, and the same for any number of processes: each
    computes the tiles of its share of the images.

    Args:
        images: (I, E) floating.
        captions: (C, E) of the same dtype, C >= 1.
        image_index: (C,) int64 in [0, I), each caption's image.
        share: this process's number, and the number of processes.
        across: reduction over the processes; all must call. None: this process has all images.

    Returns:
        (I,) int64, 0 for an image without captions, and (C,) int64, both on the device of
        ``images``. A NaN score counts against the query.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes, dtypes or devices disagree.
    """
    require_dtype("images", images, FLOATS)
    require_dtype("captions", captions, (images.dtype,))
    require_shape("images", images, (None, None), "paired_ranks")
    require_shape("captions", captions, (None, images.shape[1]), f"images {tuple(images.shape)}")
    require_dtype("image_index", image_index, (torch.int64,))
    require_shape(
        "image_index", image_index, (captions.shape[0],), f"captions {tuple(captions.shape)}"
    )
    require_same_device(images=images, captions=captions, image_index=image_index)
    return _Pass(images, captions, image_index, share).ranks(across or (lambda *_: None))


class _Pass:
    def __init__(
        self, images: Tensor, captions: Tensor, image_index: Tensor, share: tuple[int, int]
    ) -> None:
        self.images, self.captions = images, captions
        self.dtype = torch.promote_types(images.dtype, torch.float32)
        self.caption_tiles = -(-len(captions) // TILE_CANDIDATES)
        image_tiles = -(-len(images) // TILE_QUERIES)
        number, of = share
        self.image_tiles = range(image_tiles * number // of, image_tiles * (number + 1) // of)
        # The positives of each tile: their captions and images, numbered within it.
        tile = (image_index // TILE_QUERIES) * self.caption_tiles
        tile += torch.arange(len(image_index), device=image_index.device) // TILE_CANDIDATES
        order = torch.argsort(tile, stable=True)
        numbers, counts = torch.unique_consecutive(tile[order], return_counts=True)
        groups = torch.split(order, counts.tolist())
        self.positives = {
            divmod(number, self.caption_tiles): (
                group % TILE_CANDIDATES,
                image_index[group] % TILE_QUERIES,
            )
            for number, group in zip(numbers.tolist(), groups, strict=True)
            if number // self.caption_tiles in self.image_tiles
        }
        self.has_caption = torch.bincount(image_index, minlength=len(images)) > 0

    def new_tile(self) -> Tensor:
        return self.images.new_empty(TILE_CANDIDATES, TILE_QUERIES, dtype=self.dtype)

    def scores(self, row: int, column: int, out: Tensor) -> Tensor:
        """Return the product of image tile ``row`` and caption tile ``column``, with padding."""
        images = _tile_rows(self.images, row * TILE_QUERIES, TILE_QUERIES, self.dtype)
        start = column * TILE_CANDIDATES
        captions = _tile_rows(self.captions, start, TILE_CANDIDATES, self.dtype)
        return torch.mm(captions, images.T, out=out)

    def ranks(self, across: Across) -> tuple[Tensor, Tensor]:
        # Padded to whole tiles, so that each tile's part is a plain slice.
        images = -(-len(self.images) // TILE_QUERIES) * TILE_QUERIES
        captions = self.caption_tiles * TILE_CANDIDATES
        best_image = self.images.new_full((images,), -torch.inf, dtype=self.dtype)
        best_caption = self.images.new_full((captions,), -torch.inf, dtype=self.dtype)
        kept: dict[tuple[int, int], Tensor] = {}
        spare = self.new_tile()
        for (row, column), (caption, image) in self.positives.items():
            keep = len(kept) < KEPT_TILES
            scores = self.scores(row, column, self.new_tile() if keep else spare)
            found = scores[caption, image]
            found.masked_fill_(found.isnan(), -torch.inf)  # the lowest score
            own = best_image[row * TILE_QUERIES : (row + 1) * TILE_QUERIES]
            own.scatter_reduce_(0, image, found, "amax")
            best_caption[column * TILE_CANDIDATES + caption] = found
            if keep:
                kept[row, column] = scores
        across(best_image, "max")
        across(best_caption, "max")
        # Positives do not compete: their scores become -inf, below the lowest threshold.
        for best in (best_image, best_caption):
            best.clamp_(min=torch.finfo(best.dtype).min)
        above_image = torch.zeros(images, dtype=torch.int64, device=self.images.device)
        above_caption = torch.zeros(captions, dtype=torch.int64, device=self.images.device)
        below = self.new_tile()
        ones = below.new_ones(TILE_CANDIDATES)
        for row in self.image_tiles:
            rows = slice(row * TILE_QUERIES, (row + 1) * TILE_QUERIES)
            real_images = min(len(self.images) - rows.start, TILE_QUERIES)
            for column in range(self.caption_tiles):
                columns = slice(column * TILE_CANDIDATES, (column + 1) * TILE_CANDIDATES)
                real_captions = min(len(self.captions) - columns.start, TILE_CANDIDATES)
                tile = row, column
                scores = kept.pop(tile) if tile in kept else self.scores(row, column, spare)
                if tile in self.positives:
                    scores[self.positives[tile]] = -torch.inf
                # Not below, rather than at least: a NaN score counts against the query.
                torch.lt(scores, best_caption[columns, None], out=below)
                lower = below[:, :real_images] @ ones[:real_images]
                above_caption[columns] += real_images - lower.long()
                scores.lt_(best_image[rows])
                lower = ones[:real_captions] @ scores[:real_captions]
                above_image[rows] += real_captions - lower.long()
        across(above_image, "sum")
        across(above_caption, "sum")
        of_images = (above_image[: len(self.images)] + 1).masked_fill_(~self.has_caption, 0)
        return of_images, above_caption[: len(self.captions)] + 1
