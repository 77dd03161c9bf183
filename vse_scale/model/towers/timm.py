"""Image backbones of timm (pytorch-image-models), behind what the grid tower asks of a backbone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vse_scale.bounds import Fraction, Ge
from vse_scale.errors import ModelError
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.model.huggingface import first_line
from vse_scale.model.timm import build, features_alone, listed, stage_names
from vse_scale.model.towers.base import WeightsSettings
from vse_scale.model.towers.batchnorm import freeze_statistics
from vse_scale.model.towers.grid import GridTower


@dataclass(frozen=True, kw_only=True)
class TimmSettings(WeightsSettings):
    """Settings of a model of timm: ``backbone`` is "timm/" and its name there.

    Its ``weights`` are a state dict with timm's names, as in ``model.safetensors`` of the hub.

    Attributes:
        size: pixels, both sides; left out: those that timm lists for the model.
        pixels: statistics of the normalisation; "timm": those that it lists for the model.
        antialias: whether shrinking averages, as in the images that timm's weights have seen.
        pretrained: whether to start from the weights that timm lists under the name, which
            Hugging Face's hub gives once.
        drop_path: share of the samples that pass by the last residual block in training, falling
            to 0 at the first one; in place of the model's own default.
    """

    size: Annotated[int, Ge(16)] = 0  # replaced by timm's, so that a recorded one says it
    pixels: Literal["timm", "imagenet", "detector", "lite"] = "timm"  # type: ignore[assignment]
    antialias: bool = True
    pretrained: bool = False
    drop_path: Fraction = 0.0

    def __post_init__(self) -> None:
        """Fill in the size, and check that the settings go together.

        Raises:
            PartError: timm is not installed, or has no such model.
            ValueError: the settings contradict each other, or what timm lists.
        """
        entry = listed(self.backbone)
        if not self.size:
            object.__setattr__(self, "size", entry.input_size[-1])
        if self.pretrained and self.weights is not None:
            raise ValueError(
                "model.image.pretrained is true and model.image.weights is set, and say two "
                "things; take one out"
            )
        if self.pretrained and not entry.has_weights:
            raise ValueError(
                f"model.image.pretrained is true, and timm lists no weights for {self.backbone}; "
                "set model.image.weights=FILE, or model.image.pretrained=false"
            )
        own, asked = self._spec(entry), self.image_spec()
        if self.source is not None and (own.scale, own.mean, own.std) != (
            asked.scale, asked.mean, asked.std,
        ):  # fmt: skip
            raise ValueError(
                f"model.image.pixels is {self.pixels}, and the weights of {self.backbone} were "
                f"trained with mean {_numbers(own.mean)} and deviation {_numbers(own.std)}; set "
                "model.image.pixels=timm"
            )

    @property
    def source(self) -> str | None:
        """File, or name in timm, whose weights the tower starts from; None: random ones."""
        return self.backbone if self.pretrained else self.weights

    def image_spec(self) -> ImageSpec:
        """Return the pixels that the tower expects."""
        return self._spec(listed(self.backbone)) if self.pixels == "timm" else super().image_spec()

    def _spec(self, entry: Any) -> ImageSpec:
        return ImageSpec(
            size=self.size,
            channel_order="RGB",
            scale=1 / 255,
            mean=_three(entry.mean),
            std=_three(entry.std),
            antialias=self.antialias,
        )

    def weightless(self) -> tuple[TimmSettings, list[str]]:
        """Return settings without weights; nothing needs to be assumed."""
        return replace(self, weights=None, pretrained=False), []

    def doubts(self) -> list[str]:
        """Return warnings for the start of a run: weights not read, or other interpolation."""
        entry = listed(self.backbone)
        if self.source is None and "." in self.backbone:
            return [
                f"model.image.backbone={self.backbone} names weights ({entry.tag}), and none are "
                "read: the backbone's are random; set model.image.pretrained=true, or "
                "model.image.weights=FILE"
            ]
        spec = self.image_spec()
        if self.source is not None and entry.interpolation != spec.interpolation:
            return [
                f"the weights of {self.backbone} have seen images that were resized by "
                f"{entry.interpolation} interpolation; here they are resized by "
                f"{spec.interpolation} interpolation, to {spec.size} x {spec.size} pixels"
            ]
        return []


class TimmBackbone(nn.Module):
    """A model of timm up to its features: a CNN's last map, or a transformer's patches.

    Class and register tokens, which stand before the patches, are left out, and so is the head.
    BatchNorm's statistics are frozen, as in `ResNet`.

    Args:
        settings: of the tower.

    Attributes:
        channels: C of the output.

    Raises:
        ModelError: the model cannot be built, its weights do not fit, or it gives no vector per
            cell of an image of ``settings.size``.
    """

    def __init__(self, settings: TimmSettings) -> None:
        super().__init__()
        self.model = build(
            settings.backbone,
            settings.size,
            weights=settings.weights,
            pretrained=settings.pretrained,
            drop_path=settings.drop_path,
        )
        freeze_statistics(self.model)
        self._size, self._name = settings.size, settings.backbone
        out = self._try(settings.size)
        self._channels_last = str(getattr(self.model, "output_fmt", "")) == "NHWC"
        self._before = 0
        if out.dim() == 3:
            beside = getattr(self.model, "num_prefix_tokens", None)
            square = math.isqrt(out.shape[1]) ** 2
            self._before = out.shape[1] - square if beside is None else beside
        grid = self._cells_of(out)
        self.channels: int = grid.shape[2]
        self._cells: int = grid.shape[1]
        self._stages = stage_names(self.model)

    def forward(self, pixels: Tensor, trained_stages: int | None = None) -> Tensor:
        """Map normalised pixels (N, 3, H, W) to a vector per cell (N, K, C).

        Args:
            pixels: of a size that the model takes.
            trained_stages: how many of the last stages compute gradients; None: all layers do.
        """
        if trained_stages is None or trained_stages >= len(self._stages):
            return self._cells_of(self._encode(pixels))
        if trained_stages == 0:
            with torch.no_grad():
                return self._cells_of(self._encode(pixels))
        with self._fixed(len(self._stages) - trained_stages):
            return self._cells_of(self._encode(pixels))

    def _encode(self, pixels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.model.forward_features(pixels)
        return features

    def _cells_of(self, out: Tensor) -> Tensor:
        """Return features as timm lays them out, (N, ...), as (N, K, C)."""
        if out.dim() == 4:
            return out.flatten(1, 2) if self._channels_last else out.flatten(2).mT
        return out[:, self._before :]

    @contextlib.contextmanager
    def _fixed(self, stages: int) -> Iterator[None]:
        """Record no gradients of the first ``stages``; the whole model runs in one call."""
        first = [p for stage in self.parameter_stages()[:stages] for p in stage if p.requires_grad]
        try:
            for parameter in first:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in first:
                parameter.requires_grad_(True)

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return all parameters by stage, in order: blocks of a ViT, stages of others.

        What stands before them, such as a stem, is the first.
        """
        own = dict(self.model.named_parameters())
        return [[own[name] for name in names] for names in self._stages]

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block alone, and compute the rest again.

        Raises:
            ModelError: the model cannot.
        """
        try:
            self.model.set_grad_checkpointing(True)
        except Exception as error:  # an assertion, or no such method
            raise ModelError(
                f"{self._name} cannot compute activations again ({first_line(error)}); set "
                "engine.activation_checkpointing=false"
            ) from error

    def cells(self, size: int) -> int:
        """Return K for an image of ``size`` pixels, both sides.

        Raises:
            ModelError: the model takes no such image.
        """
        if size == self._size:
            return self._cells
        return int(self._cells_of(self._try(size)).shape[1])

    @torch.no_grad()
    def _try(self, size: int) -> Tensor:
        """Return the features of an image of ``size``, and leave out modules of the head alone.

        Raises:
            ModelError: the model takes no such image, or gives no vector per cell.
        """
        at, training = next(self.model.parameters()), self.model.training
        self.model.eval()
        try:
            rising = torch.linspace(-1, 1, size, device=at.device, dtype=at.dtype)
            pixels = (rising[:, None] + rising).expand(1, 3, -1, -1)
            return features_alone(self.model, pixels, self._name)
        except ModelError:
            raise
        except Exception as error:  # whatever a model makes of it
            raise ModelError(
                f"{self._name} takes no images of model.image.size={size} ({first_line(error)})"
            ) from error
        finally:
            self.model.train(training)


class TimmTower(GridTower):
    """A grid tower over a model of timm.

    Args:
        settings: of the tower.
        embed_dim: D of the embeddings.
        pool: name of the pooling.

    Raises:
        ModelError: the model cannot be built, its weights do not fit, or it takes no images of
            ``settings.size``.
    """

    Settings = TimmSettings
    settings: TimmSettings

    def __init__(self, settings: TimmSettings, embed_dim: int, pool: str = "gpo") -> None:
        super().__init__(settings, TimmBackbone(settings), embed_dim, pool)

    def standalone(self) -> TimmSettings:
        """Return settings that build the tower again, without weights."""
        return self.settings.weightless()[0]


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
