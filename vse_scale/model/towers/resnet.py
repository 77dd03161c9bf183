"""Residual networks with torchvision's state-dict names, their BatchNorm statistics frozen.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated
Residual Transformations for Deep Neural Networks", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vse_scale.model.towers.base import WeightsSettings
from vse_scale.model.towers.batchnorm import FrozenBatchNorm2d, ScaledConv2d
from vse_scale.model.towers.grid import WeightsTower
from vse_scale.model.weights import load_exactly, read_state_dict


@dataclass(frozen=True)
class Stage:
    """A run of blocks of one width; the first block has the stride.

    Attributes:
        channels: of the blocks' 3x3 convolutions (a bottleneck's output has four times as many).
        blocks: how many.
        stride: of the first.
    """

    channels: int
    blocks: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """The features that differ between residual networks.

    Attributes:
        stages: in order.
        bottleneck: three convolutions per block (1x1, 3x3, 1x1) instead of two 3x3.
        stem_channels: of the first convolution, whose stride is 2.
        stem_kernel: its side in pixels.
        pool: the 3x3 max-pool with stride 2 after it: "padded" as in torchvision, "ceil" without
            padding and rounded up as in Caffe, or None.
        stride_in_first: a bottleneck's stride in its first 1x1 convolution, as in Caffe, instead
            of its 3x3.
        groups: of a bottleneck's 3x3 convolution.
        group_width: channels per group and 64 channels of the stage.
    """

    stages: tuple[Stage, ...]
    bottleneck: bool = True
    stem_channels: int = 64
    stem_kernel: int = 7
    pool: str | None = "padded"
    stride_in_first: bool = False
    groups: int = 1
    group_width: int = 64


def _stages(*blocks: int) -> tuple[Stage, ...]:
    return tuple(
        Stage(channels, count, stride)
        for channels, count, stride in zip((64, 128, 256, 512), blocks, (1, 2, 2, 2), strict=True)
    )


BACKBONES = {
    "tiny": Architecture(
        (Stage(64, 1, 2), Stage(128, 1, 2), Stage(128, 1, 1)),
        bottleneck=False,
        stem_channels=32,
        stem_kernel=5,
        pool=None,
    ),
    "resnet50": Architecture(_stages(3, 4, 6, 3)),
    "resnet101": Architecture(_stages(3, 4, 23, 3)),
    "resnet152": Architecture(_stages(3, 8, 36, 3)),
    "resnext101_32x8d": Architecture(_stages(3, 4, 23, 3), groups=32, group_width=8),
    # The bottom-up-attention detector's ResNet-101, converted from Caffe.
    "detector": Architecture(_stages(3, 4, 23, 3), pool="ceil", stride_in_first=True),
    # The published code runs ImageNet's weights in the detector's strides: it has no others.
    "resnet152_caffe": Architecture(_stages(3, 8, 36, 3), pool="ceil", stride_in_first=True),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, stage: Stage, stride: int, architecture: Architecture) -> None:
        super().__init__()
        outputs = stage.channels
        self.conv1 = ScaledConv2d(inputs, outputs, 3, stride)
        self.bn1 = FrozenBatchNorm2d(outputs)
        self.conv2 = ScaledConv2d(outputs, outputs, 3)
        self.bn2 = FrozenBatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride), sides rounded up."""
        hidden = F.relu(self.bn1(inputs, self.conv1), inplace=True)
        hidden = self.bn2(hidden, self.conv2)
        return F.relu(hidden.add_(self.downsample(inputs)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, stage: Stage, stride: int, architecture: Architecture) -> None:
        super().__init__()
        groups = architecture.groups
        width = stage.channels * architecture.group_width // 64 * groups
        outputs = stage.channels * self.expansion
        first, second = (stride, 1) if architecture.stride_in_first else (1, stride)
        self.conv1 = ScaledConv2d(inputs, width, 1, first)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = ScaledConv2d(width, width, 3, second, groups)
        self.bn2 = FrozenBatchNorm2d(width)
        self.conv3 = ScaledConv2d(width, outputs, 1)
        self.bn3 = FrozenBatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride), sides rounded up."""
        hidden = F.relu(self.bn1(inputs, self.conv1), inplace=True)
        hidden = F.relu(self.bn2(hidden, self.conv2), inplace=True)
        hidden = self.bn3(hidden, self.conv3)
        return F.relu(hidden.add_(self.downsample(inputs)), inplace=True)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Args:
        architecture: one of `BACKBONES`.

    Attributes:
        channels: C' of the output.
        recompute: whether training keeps only the blocks' inputs and computes the rest again in
            the backward pass.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.recompute = False
        block = Bottleneck if architecture.bottleneck else BasicBlock
        channels = architecture.stem_channels
        self.conv1 = ScaledConv2d(3, channels, architecture.stem_kernel, stride=2)
        self.bn1 = FrozenBatchNorm2d(channels)
        self.maxpool = _max_pool(architecture.pool)
        self._stage_names: list[str] = []
        for number, stage in enumerate(architecture.stages, start=1):
            layers = []
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                layers.append(block(channels, stage, stride, architecture))
                channels = stage.channels * block.expansion
            self._stage_names.append(f"layer{number}")
            self.add_module(self._stage_names[-1], nn.Sequential(*layers))
        self.channels = channels
        self._architecture = architecture
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor, trained_stages: int | None = None) -> Tensor:
        """Map normalised pixels (N, 3, H, W) to a grid of features (N, C', H', W').

        Args:
            pixels: of any size.
            trained_stages: how many of the last stages compute gradients; None: all layers do.
        """
        with_gradients = torch.is_grad_enabled()
        stages = len(self._stage_names)
        first_trained = stages - min(stages if trained_stages is None else trained_stages, stages)
        # Channels-last saves a tenth of a training step on a CPU, more on a GPU.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(with_gradients and first_trained == 0):
            hidden: Tensor = self.maxpool(F.relu(self.bn1(pixels, self.conv1), inplace=True))
        for number, name in enumerate(self._stage_names):
            with torch.set_grad_enabled(with_gradients and number >= first_trained):
                for block in self.get_submodule(name).children():
                    if self.recompute and torch.is_grad_enabled():
                        hidden = checkpoint(block, hidden, use_reentrant=False)
                    else:
                        hidden = block(hidden)
        return hidden

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block alone, and compute the rest again."""
        self.recompute = True

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return all parameters by stage, the stem's with the first stage's."""
        stages = [list(self.get_submodule(name).parameters()) for name in self._stage_names]
        stages[0] = [*self.conv1.parameters(), *self.bn1.parameters(), *stages[0]]
        return stages

    def grid_side(self, size: int) -> int:
        """Return H' for H = ``size`` pixels."""
        side = -(-size // 2)
        if self._architecture.pool == "padded":
            side = -(-side // 2)
        elif self._architecture.pool == "ceil":
            side = max(side // 2, 1)
        for stage in self._architecture.stages:
            side = -(-side // stage.stride)
        return side

    def cells(self, size: int) -> int:
        """Return H' x W' for an image of ``size`` pixels, both sides."""
        return self.grid_side(size) ** 2

    def load_weights(self, path: str | Path) -> None:
        """Load a state dict with torchvision's names, or the detector's ``{"base", "top"}``.

        Its classifier ``fc.*`` is left out.

        Raises:
            ModelError: the file is missing or damaged, or its keys or shapes do not fit.
        """
        load_exactly(
            self,
            read_state_dict(Path(path)),
            str(path),
            surplus=(r"fc\.(weight|bias)",),
            # Files older than 2018 lack the counter, which frozen statistics have no use for.
            optional=(r".*num_batches_tracked",),
        )


class Shortcut(nn.Sequential):
    """A 1x1 convolution and its normalisation, with the names of torchvision's ``downsample``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(ScaledConv2d(inputs, outputs, 1, stride), FrozenBatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride), sides rounded up."""
        output: Tensor = self[1](inputs, self[0])
        return output


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return Shortcut(inputs, outputs, stride)


def _max_pool(kind: str | None) -> nn.Module:
    if kind is None:
        return nn.Identity()
    if kind == "ceil":
        return nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    return nn.MaxPool2d(3, 2, padding=1)


@dataclass(frozen=True, kw_only=True)
class ResNetSettings(WeightsSettings):
    """Settings of a residual network.

    Its ``weights`` are a state dict with torchvision's names, or the published detector's file.
    """

    licenses: ClassVar[Mapping[str, str]] = {
        "wsl": "CC-BY-NC-4.0 (Facebook's weakly supervised ResNeXt): no commercial use",
        "detector": "MIT (bottom-up attention; trained on Visual Genome, CC-BY-4.0)",
    }


class ResNetTower(WeightsTower):
    """A grid tower over one of `BACKBONES`."""

    Settings = ResNetSettings

    @staticmethod
    def network(name: str) -> ResNet:
        """Return the network of a name, with random weights."""
        return ResNet(BACKBONES[name])
