"""The image tower over regions of a detector: projection with a residual MLP, pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from vse_scale.bounds import Count
from vse_scale.inputs.spec import RegionSpec
from vse_scale.model.packing import is_eager_cpu
from vse_scale.model.pooling import make_pool
from vse_scale.model.towers.base import ImageSettings, Takes
from vse_scale.model.towers.grid import compact

_MOMENTUM = 0.1  # of BatchNorm's running statistics, torch's default
_DROP = 0.2  # share of the regions that training leaves out (VSE-infinity's code)
# Numbers of a batch from which a CPU packs regions; below there is nothing to gain, and losses keep
# their bits.
_LEAST_PACKED = 1 << 18


@dataclass(frozen=True, kw_only=True)
class RegionSettings(ImageSettings):
    """Settings of a tower over a detector's features.

    Attributes:
        max_regions: of an image; 36 as in bottom-up attention's fixed features.
        region_channels: of a region's features.
    """

    takes: ClassVar[Takes] = "regions"
    live_statistics: ClassVar[bool] = True

    max_regions: Count = 36
    region_channels: Count = 2048

    def describe(self) -> str:
        """Return the tower's name for people."""
        return "region features"

    def region_spec(self) -> RegionSpec:
        """Return the region features that the tower expects."""
        return RegionSpec(self.region_channels, self.max_regions)


class RegionTower(nn.Module):
    """Linear plus a two-layer MLP with BatchNorm, per region -> pooling.

    Args:
        settings: of the tower.
        embed_dim: D of the embeddings.
        pool: name of the pooling that makes one vector of an image's.

    Attributes:
        cells: most regions of an image.
    """

    Settings = RegionSettings

    def __init__(self, settings: RegionSettings, embed_dim: int, pool: str = "gpo") -> None:
        super().__init__()
        self.settings = settings
        channels = settings.region_channels
        self.backbone = nn.Identity()  # the detector that made the features stays outside
        self.projection = nn.Linear(channels, embed_dim)
        # Xavier's uniform bounds, as published.
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.hidden = nn.Linear(channels, embed_dim // 2)
        self.norm = SharedBatchNorm(embed_dim // 2)
        self.output = nn.Linear(embed_dim // 2, embed_dim)
        self.pool = make_pool(pool)
        self.cells = settings.max_regions

    def forward(
        self,
        regions: Tensor,
        lengths: Tensor | None = None,
        draws: Tensor | None = None,
        trained_stages: int | None = None,
    ) -> Tensor:
        """Pool ``regions`` (N, K, C), the first ``lengths`` (N,) of each, into (N, D).

        Args:
            regions: features.
            lengths: int64, at least 1; None uses all K.
            draws: (N, 1 + K) uniform in [0, 1), the first of which is a grid's: in training a
                region is left out with probability 0.2, at least one stays. Evaluation ignores
                them.
            trained_stages: ignored: all of the tower computes gradients.
        """
        if lengths is None:
            lengths = torch.full(regions.shape[:1], regions.shape[1], device=regions.device)
        kept = None
        if self.training and self.settings.drop_cells and draws is not None:
            kept = kept_regions(draws[:, 1 : 1 + regions.shape[1]], lengths)
        if self.training and regions.numel() >= _LEAST_PACKED and is_eager_cpu(lengths):
            vectors, lengths = self._packed(regions, lengths, kept)
        else:
            if kept is not None:
                regions, lengths = compact(regions, kept)
            vectors = self._transformed(regions, _within(lengths, regions.shape[1]))
        pooled: Tensor = self.pool(vectors, lengths)
        return pooled

    def _packed(
        self, regions: Tensor, lengths: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Transform the regions that are kept alone: (N, K', D), zero behind each image's own.

        Also return how many are each image's, of which K' is the most.
        """
        if kept is None:
            kept = _within(lengths, regions.shape[1])
        lengths = kept.sum(1)
        rows = regions.flatten(0, 1)[kept.flatten().nonzero()[:, 0]][None]
        vectors = self._transformed(rows, torch.ones(rows.shape[:2], dtype=torch.bool))[0]
        own = _within(lengths, int(lengths.max()))
        places = own.flatten().nonzero()[:, 0]
        padded = vectors.new_zeros(own.numel(), vectors.shape[1]).index_copy(0, places, vectors)
        return padded.view(*own.shape, -1), lengths

    def _transformed(self, regions: Tensor, present: Tensor) -> Tensor:
        """Return projection and MLP of ``regions`` (N, K, C), of which some are no padding."""
        residual = self.output(F.relu(self.norm(self.hidden(regions), present)))
        transformed: Tensor = self.projection(regions) + residual
        return transformed

    def keep(self, draws: Tensor) -> Tensor:
        """Return which of all regions training keeps, bool (N, cells), by (N, 1 + cells) draws."""
        return kept_regions(draws[:, 1:], torch.full(draws.shape[:1], self.cells))

    def check_shape(self, images: Tensor) -> None:
        """Raise ValueError where ``images`` are not (N, K, C) with C as configured."""
        channels = self.settings.region_channels
        if images.ndim != 3 or images.shape[2] != channels:
            raise ValueError(
                f"images are {tuple(images.shape)}; this model takes (N, K, {channels})"
            )

    def empty_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Return features (count, K, C) float32, uninitialised, and that all K of a row count."""
        most = self.settings.max_regions
        features = torch.empty(count, most, self.settings.region_channels)
        return features, torch.full((count,), most)

    def standalone(self) -> RegionSettings:
        """Return the settings, which say all that there is."""
        return self.settings

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return nothing: there is no backbone to train."""
        return []

    def recompute_activations(self) -> None:
        """Do nothing: two layers are not worth computing again."""


def _within(lengths: Tensor, most: int) -> Tensor:
    """Return which of ``most`` positions lie within each of ``lengths`` (N,), bool (N, most)."""
    return torch.arange(most, device=lengths.device) < lengths[:, None]


def kept_regions(draws: Tensor, lengths: Tensor) -> Tensor:
    """Decide which regions training keeps: bool (N, K), at least one of each image's own.

    Args:
        draws: (N, K) uniform in [0, 1).
        lengths: (N,) int64, how many of an image's K regions are its own.
    """
    draws = draws.where(_within(lengths, draws.shape[1]), -1.0)
    return (draws >= _DROP) | (draws == draws.amax(1, keepdim=True))


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the regions of the whole global batch, padding left out.

    In training the moments are those of all ranks, forward and backward, so that they do not
    depend on how a batch is spread out; torch's SyncBatchNorm knows neither padding nor CPUs.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``inputs`` (N, K, C), of which ``present`` (N, K) bool tells the padding."""
        if not self.training:
            return super().forward(inputs.flatten(0, 1)).view(inputs.shape)
        own = inputs.double().where(present[..., None], 0.0)
        sums = torch.cat(
            [own.sum((0, 1)), own.square().sum((0, 1)), present.sum().double().reshape(1)]
        )
        sums = _SumOverRanks.apply(sums)  # type: ignore[no-untyped-call]
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean.square()
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), _MOMENTUM)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), _MOMENTUM)
        scale = self.weight * torch.rsqrt(variance + self.eps).to(self.weight.dtype)
        normalised: Tensor = (inputs - mean.to(inputs.dtype)) * scale + self.bias
        return normalised


class _SumOverRanks(torch.autograd.Function):
    """A sum over all ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _sum_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum_over_ranks(grad)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total
