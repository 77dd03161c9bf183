"""The protocol of the towers, and the settings that towers of one side share.

A tower's settings answer whatever can be told without building it; the tower itself answers the
rest. Nobody else compares a tower's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from vse_scale.bounds import Count, Fraction, Ge, Positive
from vse_scale.inputs.pixels import ImageSpec
from vse_scale.inputs.spec import RegionSpec

if TYPE_CHECKING:
    from vse_scale.inputs.tokens import CaptionTokenizer
    from vse_scale.model.pooling.base import Pool

_UNREAD_SIZE = 512  # folders of region models hold it, and nothing reads it

Takes = Literal["images", "regions"]
"""The kind of a sample's content that an image tower encodes, as datasets call it."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Settings that all image towers have.

    Attributes:
        backbone: name of the tower.
        drop_cells: size augmentation in training: some cells of the grid, or regions, are left out.
        frozen: whether the backbone never trains; it then runs in evaluation mode.
        train_last: number of the backbone's last layers, or stages, that train; None: all of them.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic looks for this very form
    takes: ClassVar[Takes] = "images"
    # Whether statistics of the whole batch enter each sample, so that it cannot be cut.
    live_statistics: ClassVar[bool] = False
    # Of public weights that towers start from, by a part of their file's name.
    licenses: ClassVar[Mapping[str, str]] = {}

    backbone: str
    drop_cells: bool = True
    frozen: bool = False
    train_last: Count | None = None

    @property
    def source(self) -> str | None:
        """File or folder whose weights the tower starts from; None: random ones."""
        return None

    def describe(self) -> str:
        """Return the tower's name for people, such as "resnet152, 512 px"."""
        return self.backbone

    def image_spec(self) -> ImageSpec:
        """Return the pixels that the tower expects; without pixels, those of ImageNet."""
        return ImageSpec.preset("imagenet", _UNREAD_SIZE)

    def doubts(self) -> list[str]:
        """Return warnings for the start of a run, one line each."""
        return []

    def region_spec(self) -> RegionSpec | None:
        """Return the region features that the tower expects; None where it takes pixels."""
        return None

    def weightless(self) -> tuple[Self, list[str]]:
        """Return settings without files of weights, and assumptions made, one line each.

        Raises:
            ModelError: a folder that they name is damaged.
        """
        return self, []


class ChannelDropout(nn.Module):
    """In training, leaves a share of a sample's channels out, the same ones in all its vectors."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors (N, ..., C), those channels zero, the others raised by 1 / (1 - share)."""
        # Without a share nothing is drawn: a draw would move the dropout of all layers after it.
        if not self.training or not self.share:
            return vectors
        samples, *others, channels = vectors.shape
        kept = vectors.new_ones(samples, *(1 for _ in others), channels)
        return vectors * F.dropout(kept, self.share)


def project_and_pool(
    vectors: Tensor, lengths: Tensor, drop: ChannelDropout, projection: nn.Module, pool: Pool
) -> Tensor:
    """Return the vectors (N, K, C) of each of N samples as one of the joint space, (N, D).

    Args:
        vectors: of a backbone; those beyond a sample's length are ignored. Or (N, C), pooled
            before.
        lengths: (N,) int64.
        drop: leaves channels out.
        projection: from C to D channels.
        pool: over the K vectors.
    """
    if vectors.dim() == 2:
        projected: Tensor = projection(drop(vectors))
        return projected
    if drop.share:
        return pool.of_linear(lambda found: projection(drop(found)), vectors, lengths)
    # Not by the mean's shorter way: a run of before goes on to the same bits.
    pooled: Tensor = pool(projection(vectors), lengths)
    return pooled


@dataclass(frozen=True, kw_only=True)
class PixelSettings(ImageSettings):
    """Settings of towers over pixels.

    Attributes:
        size: pixels, both sides.
        pixels: statistics of the normalisation; those in a Hugging Face folder come first.
        antialias: whether shrinking averages; the published pipeline, made with OpenCV, does not.
        drop_channels: share of the backbone's channels that the projection misses in training, the
            same ones in all cells of an image. For heads over a frozen tower.
        power: p of sign(x)|x|**p, which the projection sees in place of a feature x. Below 1 a few
            large features weigh less, as under a square root.
    """

    size: Annotated[int, Ge(16)] = 512
    pixels: Literal["imagenet", "detector", "lite"] = "imagenet"
    antialias: bool = False
    drop_channels: Fraction = 0.0
    power: Positive = 1.0

    def describe(self) -> str:
        """Return the tower's name for people, and the size of its images."""
        return f"{self.backbone}, {self.size} px"

    def image_spec(self) -> ImageSpec:
        """Return the pixels that the tower expects."""
        return ImageSpec.preset(self.pixels, self.size, antialias=self.antialias)


@dataclass(frozen=True, kw_only=True)
class WeightsSettings(PixelSettings):
    """Settings of towers over pixels whose weights come in one file.

    Attributes:
        weights: a state dict with the names of the network's publisher; None: random.
    """

    weights: str | None = None

    @property
    def source(self) -> str | None:
        """File whose weights the tower starts from; None: random ones."""
        return self.weights

    def weightless(self) -> tuple[Self, list[str]]:
        """Return settings without the file of weights; nothing needs to be assumed."""
        return replace(self, weights=None), []


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Settings that all text towers have.

    Attributes:
        encoder: name of the tower.
        tokenizer: folder or file; None: the encoder's own, or one made from the captions.
        frozen: whether the encoder never trains; it then runs in evaluation mode.
        train_last: number of the encoder's last layers that train; None: all of them.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # pydantic looks for this very form
    # Of public weights that towers start from, by a part of their folder's name.
    licenses: ClassVar[Mapping[str, str]] = {}

    encoder: str
    tokenizer: str | None = None
    frozen: bool = False
    train_last: Count | None = None

    @property
    def source(self) -> str | None:
        """Folder whose weights the tower starts from; None: random ones."""
        return None

    @property
    def given_tokenizer(self) -> str | None:
        """Folder or file of the tokenizer; None where one is made from the captions."""
        return self.tokenizer or self.source

    def describe(self) -> str:
        """Return the tower's name for people, such as "bert of 12 layers"."""
        return self.encoder

    def make_tokenizer(self, captions: Iterable[str]) -> CaptionTokenizer:
        """Make the tower's kind of tokenizer from ``captions``.

        Raises:
            ModelError: the captions hold no word that it could know.
        """
        raise ValueError(f"{self.encoder} needs model.text.tokenizer")

    def expected_vocab_size(self) -> int:
        """Return the number of token ids to count with before there is a tokenizer."""
        raise ValueError(f"{self.encoder} needs model.text.tokenizer")

    def weightless(self) -> tuple[Self, list[str]]:
        """Return settings without files of weights, and assumptions made, one line each.

        Raises:
            ModelError: a folder that they name is damaged.
        """
        return self, []


class ImageTower(Protocol):
    """An image encoder, an ``nn.Module``.

    It is built as ``Tower(settings, embed_dim, pool)``, ``pool`` being the name of a pooling.

    Attributes:
        Settings: its settings.
        settings: as given.
        backbone: trains at the backbone's learning rate, and may be frozen at first.
        pool: makes one vector of an image's.
        cells: most vectors that are pooled, of an image of the configured size.
    """

    Settings: ClassVar[type[ImageSettings]]
    settings: Any
    backbone: Any
    pool: Any
    cells: int

    def __call__(
        self,
        images: Tensor,
        lengths: Tensor | None = None,
        draws: Tensor | None = None,
        trained_stages: int | None = None,
    ) -> Tensor:
        """Pool a batch of N images into (N, D), not normalised.

        Args:
            images: pixels (N, 3, H, W) normalised, or features of regions (N, K, C).
            lengths: (N,) int64, how many regions of a row are no padding; None: all.
            draws: (N, 1 + cells) uniform random numbers for size augmentation.
            trained_stages: how many of the backbone's last stages compute gradients; None: all.
        """
        ...

    def keep(self, draws: Tensor) -> Tensor:
        """Return which cells or regions size augmentation keeps, bool (N, cells)."""
        ...

    def check_shape(self, images: Tensor) -> None:
        """Raise ValueError where ``images`` are not of the shape that the tower takes."""
        ...

    def empty_batch(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Return ``count`` images as the loader delivers them, uninitialised, and region counts."""
        ...

    def standalone(self) -> ImageSettings:
        """Return settings that build the tower again, without weights and from no other place."""
        ...

    def parameter_stages(self) -> list[list[Parameter]]:
        """Return the backbone's parameters by stage, in order."""
        ...

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each block alone, and compute the rest again."""
        ...


class TextTower(Protocol):
    """A text encoder, an ``nn.Module``.

    It is built as ``Tower(settings, embed_dim, pool, vocab_size=, pad_id=, dropout=)``.

    Attributes:
        Settings: its settings.
        encoder: learns at the text encoder's rate; the rest of the tower at the heads'.
        pool: makes one vector of a caption's.
    """

    Settings: ClassVar[type[TextSettings]]
    encoder: Any
    pool: Any

    @property
    def positions(self) -> int | None:
        """Most tokens of a caption, special ones included; None: no limit."""
        ...

    def __call__(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Pool ``token_ids`` (P, L), of which ``lengths`` (P,) are no padding, into (P, D)."""
        ...

    def standalone(self) -> TextSettings:
        """Return settings that build the tower again, without weights and from no other place."""
        ...

    def recompute_activations(self) -> None:
        """Let training keep the inputs of each layer alone, and compute the rest again."""
        ...


def has_backbone(tower: ImageTower) -> bool:
    """Return whether a tower has a backbone of its own to train, freeze and calibrate."""
    return isinstance(tower.backbone, nn.Module) and bool(list(tower.backbone.parameters()))
