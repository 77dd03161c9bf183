"""Image backbones of the transformers library, behind what the grid tower asks of a backbone."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vse_scale.errors import ModelError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.model.adapters import LoRA
from vse_scale.model.huggingface import (
    architecture_of,
    describe,
    first_line,
    new_model,
    open_model,
    tower_config,
)
from vse_scale.model.processor import read_pixels
from vse_scale.model.towers.base import PixelSettings
from vse_scale.model.towers.batchnorm import freeze_statistics
from vse_scale.model.towers.grid import GridTower

_SAME = 0.001  # of the largest value


@dataclass(frozen=True, kw_only=True)
class VisionSettings(PixelSettings):
    """Settings of a vision model of transformers, from a folder or new.

    Attributes:
        path: folder with config.json and weights.
        architecture: without a path: ``model_type`` and what differs from its configuration's
            defaults; random weights.
        lora: adapters that train in place of the backbone's weights; None: the weights train.
    """

    path: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        """Check that there is something to build from.

        Raises:
            ValueError: there is neither a folder nor a type.
        """
        if not self.path and "model_type" not in self.architecture:
            raise ValueError(
                f"model.image.backbone is {self.backbone}; set model.image.path to a folder, or "
                "model.image.architecture.model_type and what differs from its defaults"
            )

    @property
    def source(self) -> str | None:
        """Folder whose weights the tower starts from; None: random ones."""
        return self.path

    def describe(self) -> str:
        """Return the folder's name, or the type of the model, and the size of its images."""
        name = Path(self.path).name if self.path else self.architecture["model_type"]
        return f"{name}, {self.size} px"

    def image_spec(self) -> ImageSpec:
        """Return the pixels that the model expects.

        Its folder's ``preprocessor_config.json`` or ``processor_config.json`` tells them; where
        there is neither, ``pixels`` does, and a line says so once.

        Raises:
            ModelError: that file is damaged.
        """
        spec = super().image_spec()
        if self.path is None:
            return spec
        found = read_pixels(Path(self.path), assumed=self.pixels)
        return spec if found is None else ImageSpec.from_dict({**spec.to_dict(), **found})

    def weightless(self) -> tuple[Self, list[str]]:
        """Return settings without files of weights, and assumptions made, one line each."""
        if self.path is None:
            return self, []
        architecture, assumed = architecture_of(Path(self.path), "resnet", _image_side)
        lora = None if assumed else self.lora  # its targets are the folder's encoder's
        return replace(self, path=None, architecture=architecture, lora=lora), assumed


class HuggingFaceBackbone(nn.Module):
    """A CNN, whose last feature map is the grid, or a vision transformer, whose patches are.

    Class and register tokens, which stand before the patches, are left out. BatchNorm's statistics
    are frozen, as in `ResNet`. Of a two-tower model (CLIP, SigLIP) the image tower is taken.

    Args:
        settings: of the tower, its ``path`` or ``architecture``.

    Attributes:
        channels: C of the output.

    Raises:
        ModelError: the model cannot be built or loaded, or takes no pixels of ``settings.size``.
    """

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        key = "model.image.path" if settings.path else "model.image.architecture"
        if settings.path is not None:
            self.model = open_model(Path(settings.path), key, _image_side, unused=["pooler"])
        else:
            self.model = new_model(settings.architecture, "resnet", key, _image_side)
        pooler = getattr(self.model, "pooler", None)
        if isinstance(pooler, nn.Module) and list(pooler.parameters()):
            # Its output is not used: left in, it would be weights that never get a gradient. Some
            # models call it without looking whether it is there.
            self.model.pooler = nn.Identity()
        freeze_statistics(self.model)
        accepted = inspect.signature(self.model.forward).parameters
        name = "interpolate_pos_encoding"
        self._options = {name: True} if name in accepted else {}
        # A masked autoencoder shuffles its patches, even where it masks none.
        masks = "noise" in accepted and hasattr(self.model.config, "mask_ratio")
        self._orders_patches = masks and isinstance(self.model.config.patch_size, int)
        self._before = 0
        self._channels_last = False
        self._probe(settings.size, settings.path or key)

    def forward(self, pixels: Tensor, trained_stages: int | None = None) -> Tensor:
        """Map normalised pixels (N, 3, H, W) to a vector per cell (N, K, C).

        Args:
            pixels: of a size that the model takes.
            trained_stages: 0 computes no gradients. The model counts as one stage.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained_stages != 0):
            out = self._encode(pixels)
        if out.dim() == 4:
            return out.flatten(1, 2) if self._channels_last else out.flatten(2).mT
        return out[:, self._before :]

    def _encode(self, pixels: Tensor) -> Tensor:
        options: dict[str, Any] = dict(self._options)
        if self._orders_patches:
            # It sorts them by this noise: rising, they stay in their order.
            side = self.model.config.patch_size
            patches = (pixels.shape[2] // side) * (pixels.shape[3] // side)
            rising = torch.arange(patches, device=pixels.device, dtype=torch.float32)
            options["noise"] = rising.expand(len(pixels), -1)
        encoded: Tensor = self.model(pixel_values=pixels, **options).last_hidden_state
        return encoded

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return all parameters, as one stage."""
        return [list(self.parameters())]

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each layer alone, and compute the rest again.

        Raises:
            ModelError: the model cannot.
        """
        try:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ModelError(
                f"{type(self.model).__name__}: {first_line(error)}; set "
                "engine.activation_checkpointing=false"
            ) from error

    def cells(self, size: int) -> int:
        """Return K for an image of ``size`` pixels, both sides."""
        out = self._try(size, "")
        return (
            out.shape[1] - self._before
            if out.dim() == 3
            else math.prod(out.shape[1:]) // self.channels
        )

    def architecture(self) -> dict[str, Any]:
        """Return what builds this model again, without weights."""
        return describe(self.model)

    @torch.no_grad()
    def _probe(self, size: int, origin: str) -> None:
        """Encode an image alone and beside another, and learn how the model lays its output out.

        Raises:
            ModelError: the model takes no such image, gives no vector per cell, or gives values
                that are not finite, or others another time.
        """
        first, both = (self._try(size, f"{origin}: ", images) for images in (1, 2))
        if first.dim() not in (3, 4) or first.shape[0] != 1 or not first.numel():
            raise ModelError(
                f"{origin}: gives {tuple(first.shape)} for an image, not a vector per cell; give "
                "another encoder"
            )
        if first.dim() == 3:
            # The image is square, and so are its cells; class tokens stand before them.
            self._before = first.shape[1] - math.isqrt(first.shape[1]) ** 2
            self.channels = first.shape[2]
        else:
            self._channels_last = first.shape[1] == first.shape[2] != first.shape[3]
            self.channels = first.shape[3 if self._channels_last else 1]
        if first.is_meta:
            return
        if not first.isfinite().all():
            raise ModelError(f"{origin}: gives values that are not finite; its weights are damaged")
        # In another batch, sums differ in their last bits.
        same = both.shape[1:] == first.shape[1:] and len(both) == 2
        if not same or (both[0] - first[0]).abs().max() > _SAME * first.abs().max():
            raise ModelError(
                f"{origin}: encodes one image to other values each time, or beside other images; "
                "give another encoder"
            )

    @torch.no_grad()
    def _try(self, size: int, origin: str, images: int = 1) -> Tensor:
        """Return what the model gives for ``images`` of ``size``, the first the same always."""
        parameter = next(self.model.parameters())
        training = self.model.training
        self.model.eval()
        try:
            rising = torch.linspace(-1, 1, size, device=parameter.device, dtype=parameter.dtype)
            pixels = (rising[:, None] + rising).expand(1, 3, -1, -1)
            return self._encode(torch.cat([pixels, pixels.flip(-1)])[:images])
        except Exception as error:  # whatever a kind of model makes of it
            raise ModelError(
                f"{origin}takes no images of model.image.size={size} ({first_line(error)})"
            ) from error
        finally:
            self.model.train(training)


class VisionTower(GridTower):
    """A grid tower over a vision model of transformers.

    Args:
        settings: of the tower.
        embed_dim: D of the embeddings.
        pool: name of the pooling.

    Raises:
        ModelError: the model cannot be built or loaded, or takes no pixels of ``settings.size``.
    """

    Settings = VisionSettings
    settings: VisionSettings

    def __init__(self, settings: VisionSettings, embed_dim: int, pool: str = "gpo") -> None:
        super().__init__(settings, HuggingFaceBackbone(settings), embed_dim, pool)

    def standalone(self) -> VisionSettings:
        """Return settings that build the tower again, without weights."""
        architecture = self.backbone.architecture()
        return replace(self.settings, path=None, architecture=architecture, lora=None)


def _image_side(config: Any) -> Any:
    part = tower_config(config, "image")
    if hasattr(part, "mask_ratio"):
        part.mask_ratio = 0.0  # masking is for pretraining; an embedding is of the whole image
    return part
