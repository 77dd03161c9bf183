"""Batch normalisation by stored statistics, and their calibration for an untrained network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScaledConv2d(nn.Conv2d):
    """A convolution without bias, that can scale and shift its outputs.

    Args:
        inputs, outputs: channels.
        kernel: side in pixels; half of it is padded on each side.
        stride: in pixels.
        groups: of channels.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(
        self, inputs: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride), sides rounded up.

        ``scale`` and ``shift`` are (C',): the outputs are multiplied by the one, through the
        weights, and the other is added.
        """
        weight = self.weight
        if scale is not None:
            weight = (weight * scale[:, None, None, None]).to(weight.dtype)
        if shift is not None:
            shift = shift.to(weight.dtype)
        outputs: Tensor = self._conv_forward(inputs, weight, shift)
        return outputs


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by stored statistics in every mode; weight and bias train.

    What a convolution puts out is then an affine map of it, which its own weights can take: the
    passes over the layer's outputs fall away, and the backward pass keeps half as many tensors
    (You et al., "Efficient ConvBN Blocks for Transfer Learning and Beyond", ICLR 2024).

    Names in the state dict are those of ``nn.BatchNorm2d``. `calibrate_batchnorm` alone changes
    the statistics.

    Args:
        channels: C of the inputs (N, C, ...).
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.population: Population | None = None

    def forward(self, inputs: Tensor, convolution: ScaledConv2d | None = None) -> Tensor:
        """Normalise ``inputs`` (N, C, ...), or what ``convolution`` makes of them.

        The convolution is called in here, where ZeRO's hooks have gathered both layers' parameters.
        """
        if convolution is not None and self.population is None:
            return convolution(inputs, *self.factors())  # type: ignore[no-any-return]
        if convolution is not None:
            inputs = convolution(inputs)
        mean, variance = self.running_mean, self.running_var
        if self.population is not None:
            mean, variance = self.population.add(inputs)
        return F.batch_norm(inputs, mean, variance, self.weight, self.bias, eps=self.eps)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return what inputs are multiplied by and what is added then, (C,), float32 or float64."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight * torch.rsqrt(self.running_var.to(dtype) + self.eps)
        return scale, torch.addcmul(self.bias, self.running_mean, scale, value=-1)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Batch normalisation by stored statistics, and the activation that timm's layer has in it.

    Args:
        layer: timm's ``BatchNormAct2d``.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.num_features, eps=layer.eps)
        self.drop, self.act = layer.drop, layer.act

    def forward(self, inputs: Tensor, convolution: ScaledConv2d | None = None) -> Tensor:
        """Normalise and activate ``inputs`` (N, C, H, W)."""
        activated: Tensor = self.act(self.drop(super().forward(inputs, convolution)))
        return activated


def freeze_statistics(module: nn.Module) -> None:
    """Put `FrozenBatchNorm2d`, of the same names and values, in place of every BatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            frozen = (
                FrozenBatchNormAct2d(child)
                if hasattr(child, "act")
                else FrozenBatchNorm2d(child.num_features, eps=child.eps)
            )
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_statistics(child)


class Population:
    """Mean and variance per channel of everything that was added, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``inputs`` (N, C, ...); return their own mean and variance (C,)."""
        others = (0, *range(2, inputs.dim()))
        variance, mean = torch.var_mean(inputs, dim=others, correction=0)
        count = inputs.numel() // inputs.shape[1]
        self._count += count
        self._sum = self._sum + count * mean.double()
        self._squares = self._squares + count * (variance.double() + mean.double().square())
        return mean, variance

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance (C,), float64.

        Raises:
            ValueError: nothing was added.
        """
        if not isinstance(self._sum, Tensor) or not isinstance(self._squares, Tensor):
            raise ValueError("calibration was given no images")
        mean = self._sum / self._count
        return mean, (self._squares / self._count - mean.square()).clamp(min=0.0)


@torch.no_grad()
def calibrate_batchnorm(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the BatchNorm statistics of an untrained backbone to those of ``batches``.

    Each layer gets the exact mean and variance of what reached it, over all batches together (not
    a moving average). That takes one pass: while it lasts a layer normalises each batch by that
    batch's own statistics, as live BatchNorm would, so a later layer's inputs differ from those
    after calibration by as much as batches differ from one another. The exact alternative, one
    pass per layer, costs a hundred passes for a ResNet-101. The result is a function of weights
    and batches alone: the same images give the same statistics on every rank.

    Args:
        backbone: holds the layers.
        batches: normalised pixels (N, 3, H, W), on the backbone's device.

    Raises:
        ValueError: there are no batches.
    """
    layers = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    populations = [Population() for _ in layers]
    try:
        for layer, population in zip(layers, populations, strict=True):
            layer.population = population
        for pixels in batches:
            backbone(pixels)
    finally:
        for layer in layers:
            layer.population = None
    for layer, population in zip(layers, populations, strict=True):
        mean, variance = population.moments()
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
