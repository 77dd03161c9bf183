"""Image towers over a grid: backbone, projection, pooling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vse_scale.errors import ModelError
from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import (
    ChannelDropout,
    PixelSettings,
    WeightsSettings,
    project_and_pool,
)

# Size augmentation of VSE-infinity's code: images that draw at most this keep all cells; the
# others lose each cell with this share of their draw.
_KEEP_ALL = 0.2
_DROP_SHARE = 0.2

_LEAST = 1e-8  # what is nearer to 0 gets no gradient


def kept_cells(draws: Tensor) -> Tensor:
    """Decide which cells of each grid size augmentation keeps: bool (N, K), at least one a row.

    Args:
        draws: (N, 1 + K) uniform in [0, 1): u of the image, then one per cell. A cell is
            dropped with probability 0.2 u if u > 0.2, and never else.
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


def signed_power(features: Tensor, power: float) -> Tensor:
    """Return sign(x)|x|**p of each of ``features``; its gradient is 0 at 0, even of a root.

    Perronnin et al., "Improving the Fisher Kernel for Large-Scale Image Classification", ECCV 2010.
    """
    if power == 1:
        return features
    if not features.requires_grad:  # in place: the features of a batch are a large array
        return features.abs().pow_(power).mul_(features.sign())
    return features.abs().clamp(min=_LEAST).pow(power) * features.sign()


class Backbone(Protocol):
    """A network from pixels to a grid of features: an ``nn.Module``.

    Attributes:
        channels: of a cell's features.
    """

    channels: int

    def __call__(self, pixels: Tensor, trained_stages: int | None) -> Tensor:
        """Map normalised pixels (N, 3, H, W) to a grid (N, C, H', W'), or to cells (N, K, C)."""
        ...

    def cells(self, size: int) -> int:
        """Return how many cells an image of ``size`` pixels, both sides, has."""
        ...

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return all parameters by stage, in order."""
        ...

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block alone, and compute the rest again."""
        ...


class GridTower(nn.Module):
    """Backbone -> one vector per cell -> Linear -> pooling.

    Args:
        settings: of the tower.
        backbone: of its kind.
        embed_dim: D of the embeddings.
        pool: name of the pooling that makes one vector of an image's.

    Attributes:
        cells: of an image of the configured size.

    Raises:
        ModelError: the power of the settings is none.
    """

    def __init__(
        self, settings: PixelSettings, backbone: Backbone, embed_dim: int, pool: str
    ) -> None:
        super().__init__()
        power: Any = settings.power  # of a model's file it may be anything
        if not isinstance(power, int | float) or not 0 < power < math.inf:
            raise ModelError(f"model.image.power is {power!r:.80}; give a number above 0")
        self.settings = settings
        self.backbone: Any = backbone
        self.projection = nn.Linear(backbone.channels, embed_dim)
        # Xavier's uniform bounds, as published.
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.drop = ChannelDropout(settings.drop_channels)
        self.pool = make_pool(pool)
        self.cells = backbone.cells(settings.size)

    def forward(
        self,
        images: Tensor,
        lengths: Tensor | None = None,
        draws: Tensor | None = None,
        trained_stages: int | None = None,
    ) -> Tensor:
        """Pool ``images`` into (N, D), not normalised.

        Args:
            images: normalised pixels (N, 3, H, W), or `features` of them (N, K, C), or
                `pooled` ones (N, C).
            lengths: None: a grid has all its cells. With features, K for each.
            draws: (N, 1 + cells) uniform in [0, 1) for size augmentation, which evaluation leaves
                out.
            trained_stages: how many of the backbone's last stages compute gradients; None: all of
                it does.

        Raises:
            ValueError: ``lengths`` were given for pixels.
        """
        if images.dim() == 2:
            lengths = torch.ones(len(images), device=images.device)
            return project_and_pool(images, lengths, self.drop, self.projection, self.pool)
        if images.dim() == 3:
            grid = images
        elif lengths is not None:
            raise ValueError("lengths are a region model's; this one takes pixels")
        else:
            grid = self.features(images, 0 if self.settings.frozen else trained_stages)
        grid = signed_power(grid, self.settings.power)
        if self.training and self.settings.drop_cells and draws is not None:
            grid, lengths = compact(grid, self.keep(draws))
        else:
            lengths = torch.full(grid.shape[:1], grid.shape[1], device=grid.device)
        return project_and_pool(grid, lengths, self.drop, self.projection, self.pool)

    def features(self, pixels: Tensor, trained_stages: int | None = None) -> Tensor:
        """Return what the backbone makes of ``pixels`` (N, 3, H, W): (N, K, C), before all else."""
        grid: Tensor = self.backbone(pixels, trained_stages)
        return grid.permute(0, 2, 3, 1).flatten(1, 2) if grid.dim() == 4 else grid

    @property
    def pools_before(self) -> bool:
        """Whether an image's features come to one vector before anything that trains or draws."""
        settings, pool = self.settings, self.pool
        return bool(settings.frozen and not settings.drop_cells and pool.commutes)

    def pooled(self, grid: Tensor) -> Tensor:
        """Return the vectors (N, C) that stand for `features` (N, K, C), where `pools_before`."""
        lengths = torch.full(grid.shape[:1], grid.shape[1], device=grid.device)
        found: Tensor = self.pool(signed_power(grid, self.settings.power), lengths)
        return found

    def train(self, mode: bool = True) -> Self:
        """Enter training or evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.settings.frozen:
            self.backbone.train(False)
        return self

    def keep(self, draws: Tensor) -> Tensor:
        """Return which cells size augmentation keeps, bool (N, cells), by (N, 1 + cells) draws."""
        return kept_cells(draws)

    def check_shape(self, images: Tensor) -> None:
        """Raise ValueError where ``images`` are no (N, 3, H, W), nor features, whole or pooled."""
        kinds = (2, 3) if self.pools_before else (3,)
        if images.ndim in kinds and images.shape[-1] == self.backbone.channels:
            return
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {tuple(images.shape)}; this model takes (N, 3, H, W)")

    def empty_batch(self, count: int) -> tuple[Tensor, None]:
        """Return pixels (count, S, S, 3) uint8, as the loader delivers them, uninitialised."""
        side = self.settings.size
        return torch.empty(count, side, side, 3, dtype=torch.uint8), None

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return the backbone's parameters by stage, in order."""
        stages: list[list[Parameter]] = self.backbone.parameter_stages()
        return stages

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block alone, and compute the rest again."""
        self.backbone.recompute_activations()


class WeightsTower(GridTower, ABC):
    """A grid tower over a network whose weights come in one file.

    Args:
        settings: of the tower.
        embed_dim: D of the embeddings.
        pool: name of the pooling.

    Raises:
        ModelError: the configured weights are missing, damaged or of another network.
    """

    settings: WeightsSettings

    def __init__(self, settings: WeightsSettings, embed_dim: int, pool: str = "gpo") -> None:
        backbone = self.network(settings.backbone)
        if settings.weights is not None:
            backbone.load_weights(settings.weights)
        super().__init__(settings, backbone, embed_dim, pool)

    @staticmethod
    @abstractmethod
    def network(name: str) -> Any:
        """Return the network of a name, with random weights; it has ``load_weights``."""

    def standalone(self) -> WeightsSettings:
        """Return settings that build the tower again, without weights."""
        return replace(self.settings, weights=None)
