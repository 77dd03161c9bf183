"""The image tower over a grid: backbone, projection, pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vse_scale.model.pooling.mean import PoolKind, make_pool
from vse_scale.model.towers.resnet import BACKBONES, ResNet
from vse_scale.model.towers.vision import HuggingFaceBackbone

if TYPE_CHECKING:
    from vse_scale.config import ImageConfig

# Size augmentation of VSE-infinity's code: images that draw at most this keep all cells; the
# others lose each cell with this share of their draw.
_KEEP_ALL = 0.2
_DROP_SHARE = 0.2


def kept_cells(draws: Tensor) -> Tensor:
    """Decide which cells of each grid size augmentation keeps: bool (N, K), at least one a row.

    Args:
        draws: (N, 1 + K) uniform in [0, 1): u of the image, then one per cell. Where u > 0.2 a
            cell is dropped with probability 0.2 u.
    """
    image, cells = draws[:, :1], draws[:, 1:]
    keep = (image <= _KEEP_ALL) | (cells >= _DROP_SHARE * image)
    return keep | (cells == cells.amax(1, keepdim=True))


def compact(vectors: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Move what is kept to the front, without waiting for the device.

    Args:
        vectors: (N, K, C).
        keep: (N, K) bool.

    Returns:
        The vectors, those kept first and in their order, (N, K, C), and their number (N,) int64.
    """
    order = torch.argsort(keep, dim=1, descending=True, stable=True)
    return vectors.gather(1, order[..., None].expand_as(vectors)), keep.sum(1)


class GridImageEncoder(nn.Module):
    """Backbone -> one vector per cell -> Linear -> pooling.

    Args:
        config: the image section of a model's configuration.
        embed_dim: D of the embeddings.
        pool: makes one vector of an image's.

    Raises:
        ModelError: the configured weights are missing, damaged or of another network.
    """

    def __init__(self, config: ImageConfig, embed_dim: int, pool: PoolKind = "gpo") -> None:
        super().__init__()
        self.backbone: ResNet | HuggingFaceBackbone
        if config.backbone == "huggingface":
            self.backbone = HuggingFaceBackbone(config)
        else:
            self.backbone = ResNet(BACKBONES[config.backbone])
            if config.weights is not None:
                self.backbone.load_weights(config.weights)
        self.projection = nn.Linear(self.backbone.channels, embed_dim)
        # Xavier's uniform bounds, as published.
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.pool = make_pool(pool)
        self._drops_cells = config.drop_cells

    def forward(
        self, pixels: Tensor, cell_draws: Tensor | None = None, trained_stages: int | None = None
    ) -> Tensor:
        """Pool ``pixels`` (N, 3, H, W) into (N, D), not normalised.

        Args:
            pixels: normalised.
            cell_draws: (N, 1 + cells) for size augmentation, which evaluation leaves out.
            trained_stages: how many of the backbone's last stages compute gradients; None: all of
                it does.
        """
        grid = self.backbone(pixels, trained_stages)
        if grid.dim() == 4:
            grid = grid.permute(0, 2, 3, 1).flatten(1, 2)
        if self.training and self._drops_cells and cell_draws is not None:
            grid, lengths = compact(grid, kept_cells(cell_draws))
        else:
            lengths = torch.full(grid.shape[:1], grid.shape[1], device=grid.device)
        pooled: Tensor = self.pool(self.projection(grid), lengths)
        return pooled

    def cells(self, size: int) -> int:
        """Return how many cells an image of ``size`` pixels, both sides, has."""
        return self.backbone.cells(size)

    def architecture(self) -> dict[str, Any]:
        """Return what builds the backbone again, without weights, as `ImageConfig.architecture`."""
        if isinstance(self.backbone, HuggingFaceBackbone):
            return self.backbone.architecture()
        return {}
